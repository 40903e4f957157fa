"""A second reading of what the scenes' generators write: truth from the words and the objects alone.

Written without their code. Unknown (what no picture shows) is None.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from smarttrim_cli.data.scenes.world import SceneObject

Objects = Sequence[SceneObject]
NUMBERS = {
    word: number
    for number, word in enumerate(
        "no one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
    )
}
SHAPES = {"circle", "square", "triangle", "diamond", "cross"}
COLORS = {"red", "green", "blue", "yellow", "purple", "cyan", "orange"}
KNOWN = {*SHAPES, *COLORS, "small", "large", "object"}
UNSEEN = "heavy|old|soft|cheap|made of wood|made of glass|made of paper|made of stone"
SIDES = "left of|right of|above|below"


def singular(word: str) -> str:
    if word.endswith("sses"):
        return word.removesuffix("es")
    return word if word.endswith("ss") else word.removesuffix("s")


def fitting(objects: Objects, phrase: str) -> list[SceneObject]:
    """Objects that a noun phrase ("an orange object", "small red circles") fits."""
    words = [singular(word) for word in phrase.split()]
    if words[0] in ("a", "an"):
        assert (words.pop(0) == "an") == (words[0][0] in "aeiou"), phrase
    assert words and set(words) <= KNOWN, phrase
    return [
        item for item in objects if all(w in (item.color, item.shape, item.size, "object") for w in words)
    ]


def the_one(objects: Objects, phrase: str) -> SceneObject:
    (item,) = fitting(objects, phrase)
    return item


def counted(objects: Objects, phrase: str) -> tuple[int, int]:
    """Number said and number there, for "two red circles"; the noun has to agree with the number."""
    word, noun = phrase.split(" ", 1)
    number = NUMBERS[word]
    assert (singular(noun.split()[-1]) == noun.split()[-1]) == (number == 1), phrase
    return number, len(fitting(objects, noun))


def lies(one: SceneObject, words: str, other: SceneObject) -> bool:
    """Judged by the pixels of the centers; cells are at least 8 pixels apart, jitter moves by 2 at most."""
    (x, y), (other_x, other_y) = one.center, other.center
    far = {"left of": other_x - x, "right of": x - other_x, "above": other_y - y, "below": y - other_y}
    return far[words] > 5


def just_beside(objects: Objects, text: str) -> bool:
    """Whether "a circle just left of a red object" is there."""
    found = re.fullmatch(rf"(an? .+) just ({SIDES}) (an? .+)", text)
    assert found, text
    return any(
        lies(one, found[2], other) and abs(one.row - other.row) + abs(one.col - other.col) == 1
        for one in fitting(objects, found[1])
        for other in fitting(objects, found[3])
    )


def truth(objects: Objects, text: str) -> bool | None:
    """Whether a hypothesis holds."""
    if found := re.fullmatch(r"(.+) (and|or) (?:anna|tom|lucy|ben) (?:drew|likes) the picture", text):
        known = plain_truth(objects, found[1])
        decided = found[2] == "or"  # false and unknown is false, true or unknown is true
        return decided if known is decided else None
    if found := re.fullmatch(rf"there is (an? .+) and it is (?:(.+) or )?(?:{UNSEEN})", text):
        there = fitting(objects, found[1])
        if not there:
            return False
        return True if found[2] and is_so(the_one(objects, found[1]), found[2]) else None
    if found := re.fullmatch(r"there is (an? .+) or (an? .+)", text):
        if fitting(objects, found[1]):
            return True
        return None if fitting(objects, without_unseen(found[2])) else False
    if found := re.fullmatch(rf"the (.+) is (.+) or (?:{UNSEEN})", text):
        return True if is_so(the_one(objects, found[1]), found[2]) else None
    if re.search(rf"\b(?:{UNSEEN})\b", text):
        assert text.startswith("there is ")
        return None if fitting(objects, without_unseen(text.removeprefix("there is "))) else False
    return plain_truth(objects, text)


def plain_truth(objects: Objects, text: str) -> bool:
    """Whether a claim that the picture decides holds."""
    if found := re.fullmatch(r"there (is|are) exactly (.+)", text):
        said, there = counted(objects, found[2])
        assert (found[1] == "is") == (said == 1)
        return said == there
    if found := re.fullmatch(r"there is (an? .+)", text):
        return bool(fitting(objects, found[1]))
    if found := re.fullmatch(r"there are more (.+) than (.+)", text):
        return len(fitting(objects, found[1])) > len(fitting(objects, found[2]))
    if found := re.fullmatch(r"(an? .+) is (just .+)", text):
        return just_beside(objects, f"{found[1]} {found[2]}")
    if found := re.fullmatch(rf"the (.+) is ({SIDES}) the (.+)", text):
        return lies(the_one(objects, found[1]), found[2], the_one(objects, found[3]))
    found = re.fullmatch(r"the (.+) is (.+)", text)
    assert found, text
    return is_so(the_one(objects, found[1]), found[2])


def is_so(item: SceneObject, value: str) -> bool:
    return bool(fitting([item], value))


def without_unseen(phrase: str) -> str:
    """An object without what is unseen of it, and with the article that it then needs."""
    article, rest = re.sub(rf" ?(?:{UNSEEN})", "", phrase).split(" ", 1)
    assert re.search(rf"\b(?:{UNSEEN})\b", phrase), phrase
    assert (article == "an") == (phrase.split()[1][0] in "aeiou")
    return f"{'an' if rest[0] in 'aeiou' else 'a'} {rest}"


def pair_truth(left: Objects, right: Objects, text: str) -> bool:
    """Whether a statement about two images holds."""
    if found := re.fullmatch(r"there (is|are) exactly (.+) in all", text):
        said, there = counted([*left, *right], found[2])
        assert (found[1] == "is") == (said == 1)
        return said == there
    if found := re.fullmatch(r"both images have the same number of (.+)", text):
        return len(fitting(left, found[1])) == len(fitting(right, found[1]))
    if found := re.fullmatch(r"the (left|right) image has more (.+) than the (left|right) image", text):
        assert found[1] != found[3]
        numbers = {"left": len(fitting(left, found[2])), "right": len(fitting(right, found[2]))}
        return numbers[found[1]] > numbers[found[3]]
    if found := re.fullmatch(r"the (left|right) image has more (.+) than (.+)", text):
        image = left if found[1] == "left" else right
        return len(fitting(image, found[2])) > len(fitting(image, found[3]))
    images = r"(both images|(?:at least one|only one|no|neither|the left|the right) image)"
    if found := re.fullmatch(rf"there is (.+) in {images}", text):
        what, where = found[1], found[2]
    else:
        found = re.fullmatch(rf"{images} (?:contains?|shows?) (.+)", text)
        assert found, text
        where, what = found[1], found[2]
    holds = [contains(image, what) for image in (left, right)]
    return {
        "both images": all(holds),
        "at least one image": any(holds),
        "only one image": holds.count(True) == 1,
        "no image": not any(holds),
        "neither image": not any(holds),
        "the left image": holds[0],
        "the right image": holds[1],
    }[where]


def contains(objects: Objects, text: str) -> bool:
    if " just " in text:
        return just_beside(objects, text)
    if text.startswith("at least "):
        said, there = counted(objects, text.removeprefix("at least "))
        return there >= said
    if text.startswith("exactly "):
        said, there = counted(objects, text.removeprefix("exactly "))
        return there == said
    return bool(fitting(objects, text))


def caption_truth(objects: Objects, text: str) -> bool:
    """Whether a caption describes a scene: numbers exact, the rest of the scene left open."""
    if found := re.match(r"(\w+) objects?(: |, among them )", text):
        named = sum(1 if part.split()[0] in ("a", "an") else NUMBERS[part.split()[0]] for part in parts(text))
        assert (found[2] == ": ") == (named == NUMBERS[found[1]]), text
        if NUMBERS[found[1]] != len(objects):
            return False
    elif found := re.match(rf"(an? [\w ]+) ({SIDES}) (an? [\w ]+?)(?:, with|$)", text):
        pairs = [(one, two) for one in fitting(objects, found[1]) for two in fitting(objects, found[3])]
        if not any(lies(one, found[2], two) for one, two in pairs):
            return False
    return all(phrase_holds(objects, part) for part in parts(text))


def parts(text: str) -> list[str]:
    text = re.sub(r"^\w+ objects?(: |, among them )", "", text)
    return re.split(rf" (?:{SIDES}|and) |, with |, ", text)


def phrase_holds(objects: Objects, phrase: str) -> bool:
    if phrase.split()[0] in ("a", "an"):
        return len(fitting(objects, phrase)) == 1
    said, there = counted(objects, phrase)
    return said == there
