"""The course's bricks against the libraries that one would use instead.

`python -m benchmarks` measures and writes benchmarks/README.md. A new brick gets a module
here with `rows()`, and its line in `__main__`.
"""
