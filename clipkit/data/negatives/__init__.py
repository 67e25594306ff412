"""Negative captions by rule: pure text, no torch.

`CaptionEditor` (`editor.py`) reads a caption (`reading.py`: words, terms of the lexicon, noun
phrases), collects what may be changed (`replace.py`: a term gives way to one that excludes it;
`swap.py`: two terms trade places; `tagger.py`: the same for words that the lexicon does not know)
and draws from it; `edits.py` puts the words in, with articles and capitals.

What the words mean lies in `lexicon/*.yaml`, read by `lexicon.py`: a new word is a word in a list
there. Two words of one group must exclude each other in a picture; what could be both is listed as
another name of one of them. What is read with doubt is left alone. `phrases.py` reads a file of
what no negative may name.

May import `errors`.
"""

from clipkit.data.negatives.editor import KINDS, CaptionEditor, Negative

__all__ = ["KINDS", "CaptionEditor", "Negative"]
