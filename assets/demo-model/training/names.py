"""Grammar of the things the model can name: articles, plurals, counting words, synonyms, kinds.

A concept is known by its name in `sprites.tsv` or by its label in `photos96.tsv`. `one("mouse")` is
"a mouse", `many("mouse")` is "mice", `counted("mouse", 2)` is "two mice". The name itself stays in
the singular form word for word, so that an answer can be searched for it.
"""

NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight"]

# name: (phrase for one, phrase for several). Only what the rules below get wrong.
PHRASES = {
    "Statue of Liberty": ("the Statue of Liberty", "Statues of Liberty"),
    "adhesive bandage": ("an adhesive bandage", "adhesive bandages"),
    "asparagus": ("asparagus", "asparagus"),
    "bacon": ("a piece of bacon", "pieces of bacon"),
    "badminton": ("a badminton racket", "badminton rackets"),
    "baguette bread": ("a loaf of baguette bread", "loaves of baguette bread"),
    "beans": ("a handful of beans", "handfuls of beans"),
    "binocular": ("a pair of binoculars", "pairs of binoculars"),
    "blossom": ("a blossom", "blossoms"),
    "blueberries": ("a bunch of blueberries", "bunches of blueberries"),
    "books": ("a stack of books", "stacks of books"),
    "bottle with popping cork": ("a bottle with popping cork", "bottles with popping corks"),
    "bow and arrow": ("a bow and arrow", "bows and arrows"),
    "bowl of rice": ("a bowl of rice", "bowls of rice"),
    "bowling": ("a bowling game", "bowling games"),
    "bread": ("a loaf of bread", "loaves of bread"),
    "broccoli": ("a piece of broccoli", "pieces of broccoli"),
    "butter": ("a piece of butter", "pieces of butter"),
    "cactus": ("a cactus", "cacti"),
    "camping": ("a camping site", "camping sites"),
    "candy": ("a piece of candy", "pieces of candy"),
    "canned food": ("a tin of canned food", "tins of canned food"),
    "carrots": ("carrots", "carrots"),
    "cherries": ("a bunch of cherries", "bunches of cherries"),
    "chopsticks": ("a pair of chopsticks", "pairs of chopsticks"),
    "coral": ("a piece of coral", "pieces of coral"),
    "crossed swords": ("a pair of crossed swords", "pairs of crossed swords"),
    "cup of coffee": ("a cup of coffee", "cups of coffee"),
    "cup of tea": ("a cup of tea", "cups of tea"),
    "cup with straw": ("a cup with straw", "cups with straws"),
    "dna": ("a strand of dna", "strands of dna"),
    "ear of corn": ("an ear of corn", "ears of corn"),
    "fireworks": ("a burst of fireworks", "bursts of fireworks"),
    "fork and knife": ("a fork and knife", "forks and knives"),
    "french fries": ("a portion of french fries", "portions of french fries"),
    "garlic": ("a bulb of garlic", "bulbs of garlic"),
    "ginger": ("ginger", "ginger"),
    "glass of milk": ("a glass of milk", "glasses of milk"),
    "glasses": ("a pair of glasses", "pairs of glasses"),
    "gloves": ("a pair of gloves", "pairs of gloves"),
    "goggles": ("a pair of goggles", "pairs of goggles"),
    "grapes": ("a bunch of grapes", "bunches of grapes"),
    "headphone": ("a pair of headphones", "pairs of headphones"),
    "ice": ("a block of ice", "blocks of ice"),
    "jeans": ("a pair of jeans", "pairs of jeans"),
    "juice": ("juice", "juice"),
    "luggage": ("a piece of luggage", "pieces of luggage"),
    "maracas": ("a pair of maracas", "pairs of maracas"),
    "meat on bone": ("a piece of meat on bone", "pieces of meat on bone"),
    "milk": ("milk", "milk"),
    "oat milk": ("oat milk", "oat milk"),
    "oatghurt": ("oatghurt", "oatghurt"),
    "pancakes": ("a stack of pancakes", "stacks of pancakes"),
    "peanuts": ("a handful of peanuts", "handfuls of peanuts"),
    "ping pong": ("a ping pong paddle", "ping pong paddles"),
    "popcorn": ("a box of popcorn", "boxes of popcorn"),
    "salt": ("a shaker of salt", "shakers of salt"),
    "satsumas": ("satsumas", "satsumas"),
    "scissors": ("a pair of scissors", "pairs of scissors"),
    "shaved ice": ("a cup of shaved ice", "cups of shaved ice"),
    "skis": ("a pair of skis", "pairs of skis"),
    "slice of cake": ("a slice of cake", "slices of cake"),
    "soap": ("a bar of soap", "bars of soap"),
    "socks": ("a pair of socks", "pairs of socks"),
    "sour cream": ("sour cream", "sour cream"),
    "sour milk": ("sour milk", "sour milk"),
    "soy milk": ("soy milk", "soy milk"),
    "soyghurt": ("soyghurt", "soyghurt"),
    "spaghetti": ("a plate of spaghetti", "plates of spaghetti"),
    "sunglasses": ("a pair of sunglasses", "pairs of sunglasses"),
    "sushi": ("a piece of sushi", "pieces of sushi"),
    "tennis": ("a tennis ball", "tennis balls"),
    "thread": ("a spool of thread", "spools of thread"),
    "wood": ("a piece of wood", "pieces of wood"),
    "yarn": ("a ball of yarn", "balls of yarn"),
    "yoghurt": ("yoghurt", "yoghurt"),
}

PLURALS = {  # last word of the name
    "mouse": "mice", "goose": "geese", "fish": "fish", "blowfish": "blowfish", "jellyfish": "jellyfish",
    "starfish": "starfish", "crayfish": "crayfish", "shrimp": "shrimp", "squid": "squid", "deer": "deer",
    "wolf": "wolves", "leaf": "leaves", "knife": "knives", "scarf": "scarves", "snowman": "snowmen",
    "tomato": "tomatoes", "potato": "potatoes", "mango": "mangoes", "volcano": "volcanoes",
    "moai": "moai", "platypus": "platypuses", "mayfly": "mayflies", "bonsai": "bonsai",
}

AN = {"hourglass", "x-ray"}            # "an" although the spelling says "a"
A = {"unicorn"}                        # "a" although the spelling says "an"

SYNONYMS = {  # what people may call a thing in a question; answers keep the name
    "rabbit": ["bunny"], "airplane": ["plane"], "hippopotamus": ["hippo"], "rhinoceros": ["rhino"],
    "bicycle": ["bike"], "doughnut": ["donut"], "television": ["TV"], "mobile phone": ["phone"],
    "football": ["american football"], "hamburger": ["burger"], "motorcycle": ["motorbike"],
    "wastebasket": ["trash can"], "flashlight": ["torch"], "eggplant": ["aubergine"],
    "luggage": ["suitcase"], "package": ["parcel"], "gift": ["present"], "ladybug": ["ladybird"],
    "ship": ["boat"], "fire engine": ["fire truck"], "french fries": ["fries", "chips"],
    "headphone": ["headphones"], "crescent moon": ["moon"], "ear of corn": ["corn"],
    "shirt": ["t-shirt"], "glass of milk": ["milk"], "slice of cake": ["cake"], "rocket": ["spaceship"],
    "flying saucer": ["ufo"], "adhesive bandage": ["plaster"], "bell pepper": ["pepper"],
    "candy": ["sweet"], "money bag": ["bag of money"], "straight ruler": ["ruler"],
    "stop sign": ["traffic sign"], "leafy green": ["salad"],
    "hot pepper": ["chili"], "handbag": ["purse"], "kick scooter": ["scooter"], "ferry": ["boat"],
}

KINDS = {  # group in sprites.tsv -> (category noun with article, plural)
    "animal-amphibian": ("an animal", "animals"), "animal-bird": ("an animal", "animals"),
    "animal-bug": ("an animal", "animals"), "animal-mammal": ("an animal", "animals"),
    "animal-marine": ("an animal", "animals"), "animal-reptile": ("an animal", "animals"),
    "food-asian": ("food", "food"), "food-fruit": ("food", "food"), "food-marine": ("food", "food"),
    "food-prepared": ("food", "food"), "food-sweet": ("food", "food"),
    "food-vegetable": ("food", "food"), "drink": ("a drink", "drinks"),
    "clothing": ("clothing", "clothing"), "musical-instrument": ("a musical instrument", "musical instruments"),
    "plant-flower": ("a plant", "plants"), "plant-other": ("a plant", "plants"),
    "tool": ("a tool", "tools"), "transport-air": ("a vehicle", "vehicles"),
    "transport-ground": ("a vehicle", "vehicles"), "transport-water": ("a vehicle", "vehicles"),
}

SHAPES = ["circle", "square", "triangle", "rectangle", "oval", "diamond", "hexagon", "heart", "cross", "ring"]
COLORS = ["white", "black", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"]
PLACES = ["meadow", "beach", "desert", "snow", "night", "road", "room"]
PLACE_CAPTION = {"meadow": "on a meadow", "beach": "at the beach", "desert": "in the desert",
                 "snow": "in the snow", "night": "under a night sky", "road": "on a road", "room": "in a room"}
PLACE_NOUN = {"meadow": "a meadow", "beach": "a beach", "desert": "a desert", "snow": "a snowy field",
              "night": "a night sky", "road": "a road", "room": "a room"}


def article(phrase):
    """"an apple", "a dog"."""
    word = phrase.split()[0]
    vowel = word in AN or (word[0] in "aeiouAEIOU" and word not in A)
    return ("an " if vowel else "a ") + phrase


def _plural_word(word):
    if word in PLURALS:
        return PLURALS[word]
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    return word + "s"


def one(name, color=None):
    """The noun phrase for a single one."""
    if color:
        return article(f"{color} {name}")
    return PHRASES[name][0] if name in PHRASES else article(name)


def many(name, color=None):
    """The plural noun phrase, without a number."""
    if name in PHRASES:
        return PHRASES[name][1]
    head, _, last = name.rpartition(" ")
    plural = f"{head} {_plural_word(last)}".strip()
    return f"{color} {plural}" if color else plural


def counted(name, count, color=None):
    """"a dog", "two dogs"."""
    return one(name, color) if count == 1 else f"{NUMBERS[count]} {many(name, color)}"


def bare(name, color=None):
    """The singular phrase without its article: what follows "the", "no" or "one"."""
    phrase = one(name, color)
    for start in ("an ", "a ", "the "):
        if phrase.startswith(start):
            return phrase[len(start):]
    return phrase


def listed(phrases):
    """"a", "a and b", "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
