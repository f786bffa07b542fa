"""The sentences of ``fxenorm-inspect --help`` that stand before and after the options."""

from __future__ import annotations

from ..glossary import glossary_lines

__all__ = ["DESCRIPTION", "epilog"]

DESCRIPTION = "Show which channels of a PyTorch model can be rescaled without changing its function, and how balanced they are."

_EPILOG = """\
the model:
  model.py               the file's module-level `model`; else a function without required arguments that
                         returns an nn.Module, or the only nn.Module class that can be built without arguments
  model.py:name          the module, function or class called `name`
  model.py:f(depth=3)    what this call returns; its arguments are numbers, texts, lists and the like
  package.module:name    the same in a module that can be imported; the working directory is looked in first
  torchvision:resnet18   a model of torchvision with random weights (nothing is downloaded)
  timm:resnet18          the same of timm
  hf:FOLDER              a model of Transformers, from the config.json and the safetensors of a folder;
                         hf:config.json: from a configuration alone, with random weights (none for large models)

The file is run, as by `python model.py` but not as the main program: guard training and everything else that is not
to run with `if __name__ == "__main__":`. A file that parses arguments gets none. A file inside a package may use
relative imports.

A module-level `example_inputs` (a tensor, a tuple, or a dict of keyword arguments) and `example_kwargs` of the file are
used unless --input is given; without any, inputs are guessed from the first layers.

Groups of equal structure share a row: "layers.{0..31}.up -> .down" with "32 × 64" channels stands for 32 groups, and
".down" is in the module of "up". --expand prints all by themselves.

--balance writes one file, or for weights of several files or of a folder the folder OUT. `fxenorm-inspect model.py --weights
OUT --balance BACK --undo OUT.log_scales.json` takes it back. All files appear whole or not at all.

exit code: 0; 1 if --verify finds a difference, or --strict something; 2 after an error; 130 when interrupted
"""


def epilog() -> str:
    """Returns the text that follows the options: models, exit codes, the words that tables use."""
    return "\n".join([_EPILOG, "words:", *glossary_lines()])
