"Fine-tuning for LTX-2 audio-video models. The names of `__init__.pyi` are resolved when they are asked for."

__version__ = "0.1.0"


def __getattr__(name: str):
    from importlib import import_module, resources
    from re import findall

    stub = resources.files(__name__).joinpath("__init__.pyi").read_text(encoding="utf-8")
    doors = {name: module for module, name in findall(r"(?m)^from (\S+) import (\w+) as \2$", stub)}
    if name == "__all__":
        return sorted(doors)
    if name not in doors:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(doors[name], __name__), name))


def __dir__():
    return sorted({*globals(), *__getattr__("__all__")})
