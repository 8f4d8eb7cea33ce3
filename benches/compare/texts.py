"""Makes texts/short.txt, 256 lines of 12 words, and texts/long.txt, 64 lines of 150: what embedding models are timed on.

    python benches/compare/texts.py
"""
import random
from pathlib import Path

WORDS = """a about adapter after all also an and any are as at back be because book but by city copper could day dog door
embedding every fast field file find first fox from garden gradient green had harbour has have heat her him his house how if
in into is it its jump kernel know language lazy learn letter light like line little long make many matrix memory metal model
more morning most music name new night no not now of old on one open or other our out over own page part people quick quiet
reader river road round said say school search see sentence she short side small so some stone story street summer table tensor
than that the their them then there these they thing this time to token train tree two under up use vector very walk wall war
was water way we well were what when where which who will wind winter with word work world would write year you""".split()


def lines(count, length, seed):
    stream = random.Random(seed)
    return "".join(" ".join(stream.choice(WORDS) for _ in range(length)) + "\n" for _ in range(count))


here = Path(__file__).parent / "texts"
here.mkdir(exist_ok=True)
(here / "short.txt").write_text(lines(256, 12, 0))
(here / "long.txt").write_text(lines(64, 150, 1))
