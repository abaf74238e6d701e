"""A page as tests read it: its words, ids, links, and what a browser would fetch for it."""

import re
from html.parser import HTMLParser


class Reader(HTMLParser):
    """The text of a page, its ids and links, and every address that a browser would fetch."""

    def __init__(self, content):
        super().__init__()
        self.text, self.ids, self.links, self.fetched, self.tags = [], [], [], [], []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        self.fetched += [value for name, value in attrs if name in ("src", "srcset", "data", "poster")]
        self.fetched += [found["href"]] if tag == "link" else []

    def handle_data(self, data):
        self.text.append(data)


def read(content):
    found = Reader(content)
    found.words = re.sub(r"\s+", " ", " ".join(found.text))
    return found
