"""In and out of other libraries' formats, one module a format."""
