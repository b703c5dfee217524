"""Trains nano, the small Video-As-Prompt model in assets/nano, from nothing on a CPU.

It stands beside `pipeline/` and not in it because making a video never needs it: it imports `pipeline`, nothing imports
it, and it brings packages (scikit-image, scikit-learn, sentencepiece) that the app can do without. It is also where to
look for how such a model is trained or fine-tuned. Run `python -m training --help`.
"""
