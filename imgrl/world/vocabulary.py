"""Names, colours and shape outlines of the embedded world."""

from __future__ import annotations

import math

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "COUNT_WORDS",
    "IMAGE_SIZE",
    "RELATIONS",
    "SHAPES",
    "TASKS",
    "TEXT_TASK",
    "WORDS",
    "outline",
    "plural",
    "with_article",
]

IMAGE_SIZE = 64

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 38, 38),
    "orange": (245, 140, 30),
    "yellow": (246, 222, 52),
    "green": (38, 166, 66),
    "blue": (48, 88, 222),
    "purple": (138, 56, 182),
    "pink": (250, 140, 190),
    "brown": (128, 78, 38),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "light grey": (196, 196, 196),
    "dark grey": (92, 92, 92),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
RELATIONS = ("left of", "right of", "above", "below")
COUNT_WORDS = {2: "two", 3: "three", 4: "four"}
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's six tasks, in its order."""
TEXT_TASK = "text"

# Words for signs: common ones, so that a small model meets most letters often, without the names of shapes
# and colours, which its tokenizer would read whole instead of letter by letter.
WORDS = tuple(
    """
    ACE ACT ADD AGE AIR ANT ARC ARM ART ASK BAD BAG BAR BAT BED BEE BIG BIT BOX BOY BUS BUY CAB CAN CAP CAR
    CAT COW CRY CUP CUT DAY DEN DIG DOG DOT DRY EAR EAT EGG END EYE FAN FAR FAT FIG FIT FIX FLY FOG FOX FUN
    GAP GAS GEM GET GUM GYM HAM HAT HEN HID HIT HOP HOT HUB HUG ICE INK JAM JAR JET JOB JOY KEY KID KIT LAB
    LAP LEG LID LIP LOG LOW MAD MAN MAP MAT MIX MOB MUD MUG NAP NET NEW NOD NUT OAK OIL OLD OWL PAN PAW PEA
    PEN PET PIE PIG PIN POT RAG RAM RAT RIB RIM ROB ROD RUG RUN SAD SAW SEA SIT SIX SKY SON SUN TAP TAR TEA
    TEN TIN TOE TOP TOY TUB VAN VET WAX WEB WET WIG WIN YAK YES ZIP ZOO ARCH BABY BACK BAKE BALL BAND BANK
    BARN BATH BEAN BEAR BELL BIKE BIRD BOAT BOOK BOWL BUSH CAKE CAMP CARD CAVE CITY CLAY COAT COIN CORN CRAB
    DARK DEER DESK DISH DOOR DUCK DUST EAST EXIT FACE FARM FIRE FISH FLAG FOOD FORK FROG GAME GATE GIFT GOAT
    GOLD HALL HAND HAWK HILL HOME HOOK IRON JAZZ JUMP KING KITE LAKE LAMB LAMP LEAF LION LOCK MILK MINT MOON
    NEST NOTE OPEN PARK PATH PEAR POND QUIZ RAIN RICE ROAD ROCK ROSE SAND SHIP SHOE SNOW SOUP STOP TAXI TENT
    TREE WAVE WEST WIND WOLF WOOD YARN ZERO ZONE APPLE BEACH BREAD CHAIR CLOUD DANCE EAGLE FIELD GRAPE HORSE
    HOTEL HOUSE JUICE LEMON LIGHT MANGO MOUSE MUSIC NORTH OCEAN PIANO PIZZA PLANT QUEEN RIVER SHEEP SOUTH
    SUGAR TABLE TIGER TRAIN WATER WHALE WHITE ZEBRA 123 200 314 365 404 500 747 808 911 999 1066 1234 1492
    1776 1812 1984 2001 2010 2024 2048 4096 5678 7890 9876 10000 12345 24680 31415 54321 67890 90210
    """.split()
)

_STAR = tuple(
    (math.sin(k * math.pi / 5) * reach, -math.cos(k * math.pi / 5) * reach)
    for k, reach in enumerate([1.0, 0.45] * 5)
)
_ARM = 0.34
_CROSS = (
    (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
    (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
)  # fmt: skip
_POLYGONS: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)),
    "triangle": ((0.0, -0.92), (1.0, 0.84), (-1.0, 0.84)),
    "star": _STAR,
    "cross": _CROSS,
}
RING_HOLE = 0.55
"""Inner radius of a ring as a share of its outer radius."""


def outline(shape: str) -> tuple[tuple[float, float], ...] | None:
    """Polygon of ``shape`` in units of its radius, y down, around the origin; None for the round ones."""
    if shape not in SHAPES:
        raise ValueError(f"Expected a shape among {', '.join(SHAPES)}, got {shape!r}.")
    return _POLYGONS.get(shape)


def plural(noun: str) -> str:
    """GenEval's plural: +es after s, else +s."""
    return noun + ("es" if noun.endswith("s") else "s")


def with_article(phrase: str) -> str:
    """The phrase behind "a", or "an" before a vowel letter."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
