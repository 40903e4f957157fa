"""What the scenes look like and what is asked about them: the options of the embedded data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 35),
    "green": (35, 165, 50),
    "blue": (45, 70, 230),
    "yellow": (240, 225, 45),
    "purple": (150, 45, 190),
    "cyan": (45, 210, 220),
    "orange": (245, 135, 25),
    "pink": (250, 140, 195),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross")
SIZES = ("small", "large")
GROUNDS = ("slate", "chalk", "stripes", "bars", "checks", "dots")
"""Words for the textures behind objects, in the order in which they are drawn."""
SPLITS = ("train", "calibration", "val", "test")
CROWDED = "crowded"
"""The split of scenes with another number of objects; only where it is asked for."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NumImages(_Section):
    """How many images each split has."""

    train: int = Field(6000, ge=1, lt=1_000_000, description="images to train on")
    calibration: int = Field(400, ge=1, lt=1_000_000, description="images on which a budget is calibrated")
    val: int = Field(600, ge=1, lt=1_000_000, description="images for evaluation during training")
    test: int = Field(1000, ge=1, lt=1_000_000, description="held-out images")
    crowded: int = Field(
        1000, ge=1, lt=1_000_000, description="held-out images with more objects, where `crowded` is set"
    )


class Crowded(_Section):
    """Scenes of a split of their own, with more objects than the others have."""

    min_objects: int = Field(ge=1, description="fewest objects in a scene")
    max_objects: int = Field(ge=1, description="most objects in a scene")


class QuestionWeights(_Section):
    """How often each type of question is asked, relative to the others."""

    attribute: float = Field(1.0, ge=0, description="what color / shape / size is the ...?")
    existence: float = Field(1.0, ge=0, description="is there a ...?")
    count: float = Field(1.0, ge=0, description="how many ... are there?")
    relation: float = Field(1.0, ge=0, description="what color is the object just left of the ...?")
    comparison: float = Field(1.0, ge=0, description="are there more ... than ...?")


class Background(_Section):
    """What is behind the objects."""

    kind: Literal["gradient", "tiles"] = Field(
        "gradient", description="one grey gradient, or one of several grey textures in each cell"
    )
    tiles: int = Field(6, ge=1, le=6, description="number of different textures (kind tiles)")
    noise: float = Field(10.0, ge=0, le=60, description="standard deviation of the pixel noise (0-255 scale)")


class StatementWeights(_Section):
    """How often each type of statement is made, relative to the others."""

    existence: float = Field(1.0, ge=0, description="there is a ... in both images")
    count: float = Field(1.0, ge=0, description="at least one image contains exactly two ...")
    comparison: float = Field(1.0, ge=0, description="the left image has more ... than the right image")
    total: float = Field(1.0, ge=0, description="there are exactly three ... in all")
    relation: float = Field(1.0, ge=0, description="at least one image shows a ... just left of a ...")


class Nlvr2(_Section):
    """Statements about two images; these come in sets of four pairs (``num_images`` is rounded up)."""

    statements_per_set: int = Field(
        8, ge=1, le=50, description="statements about a set; each is true of two of its pairs, false of two"
    )
    colors_per_set: int = Field(4, ge=2, description="colors that a set uses, if there are so many")
    shapes_per_set: int = Field(3, ge=2, description="shapes that a set uses, if there are so many")
    weights: StatementWeights = Field(
        default_factory=StatementWeights, description="mix of types of statements"
    )

    @model_validator(mode="after")
    def _possible(self) -> Nlvr2:
        """Refuse a mix of nothing."""
        if sum(self.weights.model_dump().values()) == 0:
            raise ValueError("weights: at least one has to be above 0")
        return self


class HypothesisWeights(_Section):
    """How often each type of hypothesis is made, relative to the others.

    While the first three are alike, each type has the labels it can have in equal parts.
    """

    plain: float = Field(1.0, ge=0, description="what the picture decides: entailed or contradicted")
    conjunction: float = Field(
        1.0, ge=0, description="... and something no picture shows: neutral or contradicted"
    )
    disjunction: float = Field(
        1.0, ge=0, description="... or something no picture shows: entailed or neutral"
    )
    mixed: float = Field(2.0, ge=0, description="both joined: entailed, neutral or contradicted")


class SnliVe(_Section):
    """Hypotheses about an image."""

    hypotheses_per_image: int = Field(
        6, ge=1, le=60, description="hypotheses about each image; labels alike in number with multiples of 3"
    )
    weights: HypothesisWeights = Field(
        default_factory=HypothesisWeights, description="mix of types of hypotheses"
    )

    @model_validator(mode="after")
    def _possible(self) -> SnliVe:
        """Refuse mixes in which a label cannot occur."""
        plain, conjunction, disjunction, mixed = self.weights.model_dump().values()
        if mixed == 0 and 0 in (plain + conjunction, plain + disjunction, conjunction + disjunction):
            raise ValueError("weights: with these a label cannot occur; raise mixed, or two of the others")
        return self


class Captions(_Section):
    """Captions of an image, for retrieval and captioning; best with few objects (``max_objects``)."""

    captions_per_image: int = Field(5, ge=1, le=20, description="different captions of each image")
    max_phrases: int = Field(4, ge=2, le=12, description="most kinds of object that a caption names")


class Options(_Section):
    """Options of the embedded scenes."""

    seed: int = Field(0, ge=0, description="random seed; the same options and seed give the same data")
    num_images: NumImages = Field(default_factory=NumImages, description="images per split")
    questions_per_image: int = Field(4, ge=1, le=20, description="questions about each image")
    question_weights: QuestionWeights = Field(
        default_factory=QuestionWeights, description="mix of question types"
    )
    image_size: int = Field(48, ge=8, le=1024, description="height and width in pixels")
    grid: int = Field(
        4, ge=1, le=64, description="the scene has grid x grid cells, at most one object in each"
    )
    cell_size: int = Field(12, ge=4, le=256, description="height and width of a cell in pixels")
    min_objects: int = Field(3, ge=1, description="fewest objects in a scene")
    max_objects: int = Field(12, ge=1, description="most objects in a scene")
    crowded: Crowded | None = Field(
        None, description="adds the split `crowded`, of scenes with so many objects; null: there is none"
    )
    colors: tuple[str, ...] = Field(
        ("red", "green", "blue", "yellow", "purple", "cyan", "orange"),
        min_length=2,
        description="colors of objects",
    )
    shapes: tuple[str, ...] = Field(SHAPES, min_length=2, description="shapes of objects")
    object_sizes: tuple[int, ...] = Field(
        (7, 11),
        min_length=1,
        max_length=2,
        description="pixels across a small and a large object, or one size for all",
    )
    jitter: int = Field(1, ge=0, description="objects are moved by up to this many pixels, within their cell")
    neighbour_share: float = Field(
        0.75, ge=0, le=1, description="share of relation questions about a neighbour; others compare places"
    )
    max_count: int = Field(6, ge=1, le=20, description="largest answer of a count question")
    background: Background = Field(default_factory=Background, description="what is behind the objects")
    name_grounds: bool = Field(
        False,
        description="questions also name what is behind an object (the circle on dots); for background.kind "
        "tiles. With it one object can be told from sixty others",
    )
    nlvr2: Nlvr2 = Field(default_factory=Nlvr2, description="statements about two images")
    snli_ve: SnliVe = Field(default_factory=SnliVe, description="hypotheses about an image")
    captions: Captions = Field(default_factory=Captions, description="captions (retrieval and captioning)")

    @model_validator(mode="after")
    def _possible(self) -> Options:
        """Refuse combinations that no scene can satisfy."""
        cells = self.grid**2
        for where, some in (("", self), ("crowded: ", self.crowded)):
            if some is not None and not some.min_objects <= some.max_objects <= cells:
                raise ValueError(
                    f"{where}min_objects <= max_objects <= grid * grid has to hold, "
                    f"found {some.min_objects}, {some.max_objects} and {cells}"
                )
        if self.grid * self.cell_size > self.image_size:
            raise ValueError(
                f"grid * cell_size ({self.grid} * {self.cell_size}) exceeds image_size ({self.image_size})"
            )
        if min(self.object_sizes) < 3 or max(self.object_sizes) > self.cell_size:
            raise ValueError(f"object_sizes have to be from 3 to cell_size ({self.cell_size}) pixels")
        if list(self.object_sizes) != sorted(set(self.object_sizes)):
            raise ValueError("object_sizes have to be different, the small one first")
        if self.name_grounds and (self.background.kind != "tiles" or self.background.tiles < 2):
            raise ValueError("name_grounds needs background: {kind: tiles} with at least 2 tiles")
        _refuse_others("colors", self.colors, tuple(PALETTE))
        _refuse_others("shapes", self.shapes, SHAPES)
        weights = self.question_weights
        if sum(weights.model_dump().values()) == 0:
            raise ValueError("question_weights: at least one has to be above 0")
        if self.max_objects < 2 and weights.relation + weights.comparison > 0:
            raise ValueError("relation and comparison questions need max_objects of at least 2, or weight 0")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits of these scenes."""
        return SPLITS if self.crowded is None else (*SPLITS, CROWDED)

    def of_split(self, split: str) -> Options:
        """What the scenes of one split are like."""
        if split != CROWDED or self.crowded is None:
            return self
        return self.model_copy(update=self.crowded.model_dump())

    @property
    def sizes(self) -> tuple[str, ...]:
        """Words for the object sizes in use."""
        return SIZES[: len(self.object_sizes)] if len(self.object_sizes) > 1 else ("medium",)


def _refuse_others(name: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [value for value in values if value not in known]
    if unknown:
        raise ValueError(f"{name}: {', '.join(unknown)} not known; known are {', '.join(known)}")
    if len(set(values)) != len(values):
        raise ValueError(f"{name}: the same value twice")
