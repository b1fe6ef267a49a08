"""What is said about a picture: questions, answers, and the token rows the model is trained on."""

import numpy as np

import names as N

SYSTEM_HUMAN = ("A chat between a curious human and an artificial intelligence assistant. The assistant gives "
                "helpful, detailed, and polite answers to the human's questions.")
SYSTEM_USER = SYSTEM_HUMAN.replace("human's", "user's").replace("human", "user")
SYSTEMS = [SYSTEM_HUMAN + " ", SYSTEM_USER + " ", ""]

CAPTION, YESNO, HOWMANY, BACK, LEFTRIGHT, UPDOWN, WHICH, WHERE, COLOR, KIND, UNKNOWN, MEDIUM, PHOTO = range(13)
TYPES = ["caption", "yes/no", "how many", "background", "left/right", "above/below", "which", "where",
         "colour", "kind", "unanswerable", "medium", "photo noun"]

NOUNS = ["image", "picture", "image", "picture", "image", "picture", "photo", "scene", "drawing"]
DESCRIBE = [
    "Describe this image.", "Describe this image.", "Describe this image.", "Describe this {p}.",
    "Describe the {p}.", "What is in this {p}?", "What is in the {p}?", "What's in this {p}?",
    "What do you see?", "What do you see in this {p}?", "What can you see here?", "What is shown in this {p}?",
    "What is this?", "What does this {p} show?", "What is shown here?", "Caption this {p}.",
    "Give a short caption.", "Write a caption for this {p}.", "Can you describe this {p}?",
    "Please describe this {p}.", "Describe this {p} in one sentence.", "Describe the {p} briefly.",
    "Tell me about this {p}.", "Tell me what you see.", "What is happening in this {p}?",
    "What objects are in this {p}?", "What things are there?", "Describe what you see.", "Describe it.",
    "Describe this {p} in detail.", "List what is in the {p}.", "Explain this {p}.", "What is this a {p} of?",
    "What is the main thing in this {p}?", "What does it show?",
]
UNKNOWABLE = [
    "Who made this {p}?", "Who took this {p}?", "When was this {p} made?", "When was it taken?",
    "What is the name of the {o}?", "How old is the {o}?", "How much does the {o} cost?", "What time is it?",
    "What will happen next?", "Who owns the {o}?", "Where was this {p} taken?", "What is the {o} thinking?",
    "What is outside the {p}?", "How heavy is the {o}?", "What does the text say?", "What day is it?",
    "What is the weather forecast?", "Why is the {o} there?", "What happened before?", "What does the {o} smell like?",
    "Who is the artist?", "What is the temperature?", "Is the {o} expensive?", "Where does the {o} come from?",
]
OFF_TOPIC = [
    "Tell me a joke.", "Write a poem.", "What is two plus two?", "Who are you?", "Hello!", "Hi", "How are you?",
    "What is the capital of France?", "Write a story about this {p}.", "Translate this into French.",
    "Write some code.", "What is the meaning of life?", "Who is the president?", "Can you help me?",
    "Sing a song.", "What is your name?", "Explain quantum physics.", "Thank you!", "Write an essay.",
]
CANNOT_TELL = "I can't tell that from this picture."
CANNOT_DO = "I can only describe pictures and answer simple questions about them."


def vary(rng, question, noun=None):
    """The question as different people would type it."""
    q = question.replace("{p}", rng.choice(NOUNS))
    if noun:
        q = q.replace("{o}", noun)
    if rng.random() < .1:
        q = q.replace("color", "colour")
    r = rng.random()
    if r < .12:
        q = q[0].lower() + q[1:]
    elif r < .20:
        q = q[0].lower() + q[1:].rstrip("?.")
    elif r < .25:
        q = q.rstrip("?.")
    return q


def asked_name(rng, name):
    """The name, or now and then a synonym."""
    if name in N.SYNONYMS and rng.random() < .3:
        return rng.choice(N.SYNONYMS[name])
    return name


def back_phrase(scene):
    if scene.back in N.PLACE_CAPTION:
        return N.PLACE_CAPTION[scene.back]
    return "in front of a photo" if scene.back == "photo" else f"on a{'n' if scene.back == 'orange' else ''} {scene.back} background"


def caption(scene):
    """The one right description: kinds from left to right, then what is behind them."""
    things = N.listed([N.counted(n, len(ts), c) for n, c, ts in scene.kinds()])
    return f"The picture shows {things} {back_phrase(scene)}."


def photo_caption(label):
    return f"This is a photo of {N.one(label)}."


def _the(name, color=None):
    return f"the {N.bare(name, color)}"


def _there(name, count, color=None):
    if count == 0:
        return f"There are no {N.many(name, color)}."
    if count == 1:
        return f"There is one {N.bare(name, color)}."
    return f"There are {N.NUMBERS[count]} {N.many(name, color)}."


class Asker:
    """Makes up questions about scenes and photos, with their right answers."""

    def __init__(self, planner, labels, sides=1.0):
        """`sides`: how many times more often than WEIGHTS say left and right are asked for yes or no."""
        self.planner, self.labels = planner, labels
        more = EITHER_SHARE + (1 - EITHER_SHARE) * sides
        self.weights = {**WEIGHTS, LEFTRIGHT: WEIGHTS[LEFTRIGHT] * more}
        self.either = {"x": EITHER_SHARE / more, "y": EITHER_SHARE}
        self.group_of = {n: g for g, ns in planner.groups.items() for n in ns}

    # ---- what is not there

    def absent(self, rng, scene):
        """(name, color) of something the scene does not show; half of the time a likely mistake."""
        kinds = scene.kinds()
        present = {n for n, _, _ in kinds}
        name, color, _ = rng.choice(kinds)
        if color:
            if rng.random() < .5:
                other = rng.choice([c for c in N.COLORS if c not in {k[1] for k in kinds}])
                return name, other
            free = [s for s in N.SHAPES if s not in present]
            return rng.choice(free), (rng.choice([color, None]))
        if rng.random() < .5:
            near = [n for n in self.planner.groups[self.group_of[name]] if self._apart(n, present)]
            if near:
                return rng.choice(near), None
        while True:
            other = rng.choice(self.planner.names)
            if self._apart(other, present):
                return other, None

    @staticmethod
    def _apart(name, present):
        """A palm tree is a tree: such a pair is no fair trap."""
        return not any(name.endswith(p) or p.endswith(name) for p in present)

    # ---- one builder a kind of question: (question, answer) or None

    def ask_caption(self, rng, scene):
        return rng.choice(DESCRIBE), caption(scene)

    def ask_yesno(self, rng, scene):
        kinds = scene.kinds()
        if rng.random() < .5:
            name, color, things = rng.choice(kinds)
            if color and rng.random() < .4 and sum(k[0] == name for k in kinds) == 1:
                color = None
            q_name, count = (name if color else asked_name(rng, name)), len(things)
            answer = f"Yes, there {'is' if count == 1 else 'are'} {N.counted(name, count, color)}."
        else:
            name, color = self.absent(rng, scene)
            q_name = name if color else asked_name(rng, name)
            answer = f"No, there is no {N.bare(name, color)}."
        thing, several = N.one(q_name, color), N.many(q_name, color)
        q = rng.choice([f"Is there {thing} in this {{p}}?", f"Is there {thing} in the {{p}}?", f"Is there {thing}?",
                        f"Is there {thing} here?", f"Can you see {thing}?", f"Do you see {thing}?",
                        f"Are there any {several}?", f"Are there any {several} in the {{p}}?",
                        f"Does the {{p}} show {thing}?", f"Is {thing} in the {{p}}?"])
        return q, answer

    def ask_howmany(self, rng, scene):
        kinds = scene.kinds()
        if rng.random() < .2:
            n = len(scene.things)
            q = rng.choice(["How many objects are there?", "How many things are in the {p}?",
                            "How many objects are in this {p}?", "How many things can you see?"])
            return q, ("There is one object." if n == 1 else f"There are {N.NUMBERS[n]} objects.")
        counts = sorted({len(ts) for _, _, ts in kinds})
        wanted = rng.choice([0] + counts + 2 * [c for c in counts if c > 1])
        if wanted == 0:
            name, color = self.absent(rng, scene)
        else:
            name, color, _ = rng.choice([k for k in kinds if len(k[2]) == wanted])
        if color and rng.random() < .5:
            color = None
        count = sum(len(ts) for n, c, ts in kinds if n == name and color in (None, c))
        several = N.many(name if color else asked_name(rng, name), color)
        q = rng.choice([f"How many {several} are there?", f"How many {several} are in the {{p}}?",
                        f"How many {several} are in this {{p}}?", f"How many {several} can you see?",
                        f"How many {several} do you see?", f"Count the {several}."])
        return q, _there(name, count, color)

    def ask_back(self, rng, scene):
        color_q = rng.choice(["What color is the background?", "What is the background color?",
                              "What is the color of the background?", "Which color is the background?"])
        place_q = rng.choice(["What is in the background?", "Where is this?", "What place is this?",
                              "What is the background?", "Describe the background."])
        if scene.back in N.COLORS:
            return (color_q if rng.random() < .8 else place_q), f"The background is {scene.back}."
        noun = "a photo" if scene.back == "photo" else N.PLACE_NOUN[scene.back]
        return (place_q if rng.random() < .8 else color_q), f"The background is {noun}."

    def _pair(self, rng, scene, axis, margin=.10):
        """Two single things of different kinds, well apart on an axis."""
        singles = [(n, c, ts[0]) for n, c, ts in scene.kinds() if len(ts) == 1]
        pairs = [(a, b) for a in singles for b in singles
                 if a is not b and abs(getattr(a[2], axis) - getattr(b[2], axis)) > margin]
        return rng.choice(pairs) if pairs else None

    def _relation(self, rng, scene, axis, words):
        pair = self._pair(rng, scene, axis)
        if not pair or rng.random() < .04:
            name, color = self.absent(rng, scene)
            there, c2, _ = rng.choice(scene.kinds())
            q = f"Is {_the(name, color)} {rng.choice(words)} {_the(there, c2)}?"
            return (q, f"There is no {N.bare(name, color)}.") if rng.random() < .3 else None
        (an, ac, a), (bn, bc, b) = pair
        true = words[0] if getattr(a, axis) < getattr(b, axis) else words[1]
        first, second = _the(an, ac), _the(bn, bc)
        statement = f"{first} is {true} {second}."
        if rng.random() < self.either[axis]:
            sides = [w.replace(" of", "") for w in words]
            q = rng.choice([f"Is {first} {sides[0]} or {sides[1]} {'of ' if ' of' in words[0] else ''}{second}?",
                            f"Where is {first} relative to {second}?"]) if axis == "x" else \
                f"Is {first} {words[0]} or {words[1]} {second}?"
            return q, statement[0].upper() + statement[1:]
        asked = rng.choice(words)
        said = asked.replace("to the ", "") if rng.random() < .4 else asked
        return f"Is {first} {said} {second}?", ("Yes, " if asked == true else "No, ") + statement

    def ask_leftright(self, rng, scene):
        return self._relation(rng, scene, "x", ["to the left of", "to the right of"])

    def ask_updown(self, rng, scene):
        return self._relation(rng, scene, "y", ["above", "below"])

    def ask_which(self, rng, scene):
        """The one kind beside a thing, where that is clear; the leftmost or rightmost thing."""
        kinds = scene.kinds()
        if any(len(ts) > 1 for _, _, ts in kinds) or len(kinds) < 2:
            return None
        things = [(n, c, ts[0]) for n, c, ts in kinds]
        axis = rng.choice("xxy")
        order = sorted(things, key=lambda k: getattr(k[2], axis))
        if rng.random() < .4 or len(things) > 3:
            end = rng.choice([0, -1])
            gap = abs(getattr(order[end][2], axis) - getattr(order[1 if end == 0 else -2][2], axis))
            if gap < .06:
                return None
            side = {"x": ["on the left", "on the right"], "y": ["at the top", "at the bottom"]}[axis][end]
            n, c, _ = order[end]
            a = f"{N.one(n, c)} is {side}."
            return rng.choice([f"What is {side}?", f"What is {side} of the {{p}}?", f"Which object is {side}?"]), \
                a[0].upper() + a[1:]
        anchor = rng.choice(things)
        words = {"x": ["to the left of", "to the right of"], "y": ["above", "below"]}[axis]
        lower = rng.random() < .5
        here = getattr(anchor[2], axis)
        others = [k for k in things if k is not anchor]
        if any(abs(getattr(k[2], axis) - here) < .08 for k in others):
            return None
        hits = [k for k in others if (getattr(k[2], axis) < here) == lower]
        q = f"What is {words[0 if lower else 1]} {_the(anchor[0], anchor[1])}?"
        if not hits:
            return q, f"There is nothing {words[0 if lower else 1]} {_the(anchor[0], anchor[1])}."
        a = f"{N.listed([N.one(n, c) for n, c, _ in hits])} {'is' if len(hits) == 1 else 'are'} " \
            f"{words[0 if lower else 1]} {_the(anchor[0], anchor[1])}."
        return q, a[0].upper() + a[1:]

    def ask_where(self, rng, scene):
        if rng.random() < .15:
            name, color = self.absent(rng, scene)
            return f"Where is {_the(name, color)}?", f"There is no {N.bare(name, color)}."
        singles = [(n, c, ts[0]) for n, c, ts in scene.kinds() if len(ts) == 1]
        rng.shuffle(singles)
        for n, c, t in singles:
            u, v = (t.x - .5) / scene.w, (t.y - .5) / scene.h
            clear = [abs(abs(p) - .167) > .04 for p in (u, v)]
            if all(clear):
                col = "left" if u < -.167 else "right" if u > .167 else ""
                row = "top" if v < -.167 else "bottom" if v > .167 else ""
                spot = "in the middle" if not (col or row) else f"at the {' '.join(filter(None, (row, col)))}"
                return f"Where is {_the(n, c)}?", f"{_the(n, c)} is {spot}.".replace("the", "The", 1)
        return None

    def ask_color(self, rng, scene):
        kinds = scene.kinds()
        names = [n for n, _, _ in kinds]
        choices = []
        for n, c, ts in kinds:
            c = c or (self.planner.sprite_colors.get(ts[0].sprite) if ts[0].keep_color and len(ts) == 1 else None)
            if c and names.count(n) == 1:
                choices.append((n, c, len(ts)))
        if rng.random() < .08:
            name, color = self.absent(rng, scene)
            if not color:
                return f"What color is {_the(name)}?", f"There is no {N.bare(name)}."
        if not choices:
            return None
        n, c, count = rng.choice(choices)
        things = _the(n) if count == 1 else f"the {N.many(n)}"
        verb = "is" if count == 1 else "are"
        return f"What color {verb} {things}?", f"The {things[4:]} {verb} {c}."

    def ask_kind(self, rng, scene):
        name, color, things = rng.choice(scene.kinds())
        kind = N.KINDS.get(self.group_of.get(name))
        if not kind or len(things) > 1:
            return None
        if rng.random() < .5:
            return f"What kind of thing is {_the(name)}?", f"{_the(name)} is {kind[0]}.".replace("the", "The", 1)
        some = rng.choice(sorted(set(N.KINDS.values())))
        hits = [k for k in scene.kinds() if N.KINDS.get(self.group_of.get(k[0])) == some]
        if hits:
            return f"Is there {some[0]} in the {{p}}?", f"Yes, there {'is' if len(hits[0][2]) == 1 else 'are'} " \
                f"{N.counted(hits[0][0], len(hits[0][2]))}."
        return f"Is there {some[0]} in the {{p}}?", f"No, there is no {some[0].removeprefix('a ').removeprefix('an ')}."

    def ask_unknown(self, rng, scene):
        if rng.random() < .3:
            return rng.choice(OFF_TOPIC), CANNOT_DO
        name, color, _ = rng.choice(scene.kinds())
        return rng.choice(UNKNOWABLE).replace("{o}", N.bare(name, color)), CANNOT_TELL

    def ask_medium(self, rng, scene):
        if rng.random() < .5:
            return rng.choice(["Is this a photo?", "Is this a real photo?"]), "No, this is a drawing."
        return "Is this a photo or a drawing?", "This is a drawing."

    # ---- photos

    def photo_turn(self, rng, label):
        """(type, question, answer) about a photo of `label`."""
        r = rng.random()
        if r < .08:
            if rng.random() < .5:
                return MEDIUM, rng.choice(["Is this a photo?", "Is this a real photo?"]), "Yes, this is a photo."
            return MEDIUM, "Is this a photo or a drawing?", "This is a photo."
        if r < .35:
            if rng.random() < .5:
                name, answer = label, f"Yes, there is {N.one(label)}."
            else:
                name = rng.choice(self.labels if rng.random() < .7 else self.planner.names)
                if name == label or label in name or name in label:
                    name = "volcano"
                answer = f"No, there is no {N.bare(name)}."
            thing = N.one(asked_name(rng, name))
            return YESNO, rng.choice([f"Is there {thing} in this {{p}}?", f"Is this {thing}?", f"Can you see {thing}?",
                                      f"Do you see {thing}?", f"Is there {thing}?"]), answer
        if r < .42:
            q = rng.choice(UNKNOWABLE).replace("{o}", N.bare(label))
            return UNKNOWN, q, CANNOT_TELL
        if r < .44:
            return UNKNOWN, rng.choice(OFF_TOPIC), CANNOT_DO
        if r < .50:
            return PHOTO, rng.choice(["What is the main object?", "What is it?", "What kind of thing is this?",
                                      "What is the subject of this {p}?"]), photo_caption(label)
        return PHOTO, rng.choice(DESCRIBE), photo_caption(label)

    def pick_types(self, rng, n=6):
        """Types of questions for one picture: a caption at most once, the rest in any number."""
        first = [CAPTION] if rng.random() < CAPTION_SHARE else []
        kinds = first + rng.choices(list(self.weights), list(self.weights.values()), k=n - len(first))
        rng.shuffle(kinds)
        return kinds

    def scene_turns(self, rng, scene, kinds):
        """[(type, question, answer)] for a list of wanted types; what cannot be asked is left out."""
        ask = {CAPTION: self.ask_caption, YESNO: self.ask_yesno, HOWMANY: self.ask_howmany, BACK: self.ask_back,
               LEFTRIGHT: self.ask_leftright, UPDOWN: self.ask_updown, WHICH: self.ask_which, WHERE: self.ask_where,
               COLOR: self.ask_color, KIND: self.ask_kind, UNKNOWN: self.ask_unknown, MEDIUM: self.ask_medium}
        turns = [(k, ask[k](rng, scene)) for k in kinds]
        return [(k, t[0], t[1]) for k, t in turns if t]


CAPTION_SHARE = .85
WEIGHTS = {YESNO: .27, HOWMANY: .25, BACK: .08, LEFTRIGHT: .12, UPDOWN: .06, WHICH: .07, WHERE: .04, COLOR: .05,
           KIND: .03, UNKNOWN: .02, MEDIUM: .01}
EITHER_SHARE = .35           # of the questions about sides: "left or right?"; the others want yes or no
LOSS_WEIGHT = {YESNO: 2.0, HOWMANY: 2.0, LEFTRIGHT: 1.5, PHOTO: 1.5}
IGNORE = -100
SIDES = ["to the left of", "to the right of", "above", "below"]


def side_of(kind, answer):
    """Index of the side (SIDES) that the answer to such a question states, else -1."""
    if kind not in (LEFTRIGHT, UPDOWN):
        return -1
    return next((i for i, side in enumerate(SIDES) if f" is {side} the " in answer), -1)


class RowBuilder:
    """Turns into token rows.

    A row is [padding][system and USER:][image][segment 1][segment 2]... Every segment continues the
    image as if the others were not there (its own `seg` number, its positions restart), so that one
    picture is looked at once and asked many things. A segment may be a conversation of several turns.
    """

    def __init__(self, sp, image_id, pad_id, n_image, n_text, verdict=1.0):
        """`verdict`: how much more the word Yes or No counts than the rest of its answer."""
        self.sp, self.image_id, self.pad_id, self.n_image, self.n_text = sp, image_id, pad_id, n_image, n_text
        self.verdict = verdict
        self.prefixes = [[sp.bos_id()] + sp.encode(s + "USER: ") for s in SYSTEMS]
        self.n_prefix = max(map(len, self.prefixes))
        self.length = self.n_prefix + n_image + n_text
        # continuing after </s>: with and without SentencePiece's leading space
        self.user = sp.encode("USER:")
        marker = sp.encode("0")
        bare = sp.encode("0USER:")
        self.user_bare = bare[len(marker):]

    def turn(self, rng, question, answer, first):
        """(ids, number of ids that are not learned) of one turn."""
        if first:
            ask = self.sp.encode(f"\n{question} ASSISTANT:")
        else:
            user = self.user if rng.random() < .5 else self.user_bare
            ask = user + self.sp.encode(f"{question} ASSISTANT:")
        return ask + self.sp.encode(answer) + [self.sp.eos_id()], len(ask)

    def row(self, rng, turns, system, chat):
        """(ids, labels, weights, seg, pos, kinds, sides) of `turns` [(type, question, answer)]; `sides` says
        where the first word of an answer about sides is chosen, and which side is the true one."""
        n = self.length
        ids = np.full(n, self.pad_id, np.int16)
        labels = np.full(n, IGNORE, np.int16)
        weights = np.zeros(n, np.float32)
        seg = np.full(n, -1, np.int16)
        pos = np.zeros(n, np.int16)
        kinds = np.full(16, -1, np.int8)
        sides = np.full(n, -1, np.int8)
        prefix = self.prefixes[system]
        start = self.n_prefix - len(prefix)
        at = self.n_prefix + self.n_image
        ids[start:self.n_prefix] = prefix
        ids[self.n_prefix:at] = self.image_id
        seg[start:at] = 0
        pos[start:at] = np.arange(at - start)
        base, number, where = at - start, 0, at - start
        for i, (kind, question, answer) in enumerate(turns):
            first = not chat or number == 0
            tokens, n_ask = self.turn(rng, vary(rng, question), answer, first)
            if at + len(tokens) > n or number == 15:
                continue
            if first:
                where = base
            number += 1
            end = at + len(tokens)
            ids[at:end] = tokens
            seg[at:end] = 1 if chat else number
            pos[at:end] = np.arange(where, where + len(tokens))
            labels[at + n_ask - 1:end - 1] = tokens[n_ask:]
            weights[at + n_ask - 1:end - 1] = LOSS_WEIGHT.get(kind, 1.0)
            if answer.startswith(("Yes,", "No,")):
                weights[at + n_ask - 1] *= self.verdict
            sides[at + n_ask - 1] = side_of(kind, answer)
            kinds[number] = kind
            at, where = end, where + len(tokens)
        return ids, labels, weights, seg, pos, kinds, sides
