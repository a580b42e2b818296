"""What the built-in clips can contain, and how people might say so.

`EVENTS` documents every event: its name, how it sounds, the phrases that name it in captions, and
the key words by which a caption is credited with it (event-word recall). No event's key word
occurs in another event's phrases, which a test checks.
"""

import re
from dataclasses import dataclass, field

import numpy as np

from safe.data import synthetic_sounds as sounds
from safe.data.synthetic_sounds import Renderer


@dataclass(frozen=True)
class Event:
    """One kind of sound and its words."""

    name: str
    """Identifier, unique among the events."""
    render: Renderer = field(repr=False)
    """Makes the waveform: (generator, n samples) -> float64 [n] at any level."""
    phrases: tuple[tuple[str, str], ...]
    """Ways to say it, each as a clause ("a bell rings") and as a noun phrase ("a bell ringing")."""
    keywords: frozenset[str]
    """Lower-case words; one of them occurs in every phrase."""


def _event(name: str, render: Renderer, keywords: str, *phrases: str) -> Event:
    pairs = tuple((clause, noun) for clause, noun in (p.split(" | ") for p in phrases))
    return Event(name, render, pairs, frozenset(keywords.split()))


_ALL = (
    _event(
        "hum",
        sounds.hum,
        "hum hums humming",
        "a machine hums | a machine humming",
        "a low hum continues | a low humming",
        "a deep hum vibrates | a deep hum vibrating",
    ),
    _event(
        "beep",
        sounds.beep,
        "beep beeps beeping",
        "a device beeps | a device beeping",
        "a high pitched beep repeats | high pitched beeping",
        "an electronic beep sounds repeatedly | repeated electronic beeps",
    ),
    _event(
        "rising",
        sounds.rising,
        "rising rises",
        "a tone rises in pitch | a tone rising in pitch",
        "a rising whoosh sweeps upward | a rising whoosh",
        "a synthetic sound rises | a synthetic rising sound",
    ),
    _event(
        "falling",
        sounds.falling,
        "falling falls",
        "a tone falls in pitch | a tone falling in pitch",
        "a falling whoosh sweeps downward | a falling whoosh",
        "a synthetic sound falls | a synthetic falling sound",
    ),
    _event(
        "click",
        sounds.click,
        "click clicks clicking",
        "a mouse clicks | a mouse clicking",
        "keys click rapidly | keys clicking rapidly",
        "several clicks occur | several sharp clicks",
    ),
    _event(
        "siren",
        sounds.siren,
        "siren sirens",
        "a siren wails | a siren wailing",
        "an emergency siren sounds | an emergency siren",
        "a police siren blares | a police siren blaring",
    ),
    _event(
        "buzzer",
        sounds.buzzer,
        "buzzer buzzes buzzing",
        "a buzzer goes off | a buzzer going off",
        "a buzzer buzzes loudly | a loud buzzer",
        "something buzzes harshly | harsh buzzing",
    ),
    _event(
        "rain",
        sounds.rain,
        "rain raindrops raining",
        "rain comes down steadily | steady rain",
        "rain pours down | rain pouring down",
        "rain patters on a roof | rain pattering on a roof",
    ),
    _event(
        "waves",
        sounds.waves,
        "waves wave surf",
        "ocean waves crash | ocean waves crashing",
        "waves roll onto a beach | waves on a beach",
        "the surf washes ashore | surf washing ashore",
    ),
    _event(
        "clock",
        sounds.clock,
        "clock ticks ticking tick",
        "a clock ticks | a clock ticking",
        "a clock tick tocks | a ticking clock",
        "a wall clock ticks steadily | the steady ticking of a wall clock",
    ),
    _event(
        "bell",
        sounds.bell,
        "bell bells",
        "a bell rings | a bell ringing",
        "a church bell chimes | a church bell chiming",
        "a large bell tolls | the tolling of a large bell",
    ),
    _event(
        "knock",
        sounds.knock,
        "knock knocks knocking",
        "someone knocks on a door | knocking on a door",
        "a person knocks on wood | a person knocking on wood",
        "a knock repeats | repeated knocks",
    ),
    _event(
        "drum",
        sounds.drum,
        "drum drums drumming drummer",
        "a drum beats | a drum beating",
        "drums play a rhythm | rhythmic drumming",
        "a drummer plays | a drummer playing drums",
    ),
    _event(
        "whistle",
        sounds.whistle,
        "whistle whistles whistling",
        "a person whistles | a person whistling",
        "someone whistles a tune | someone whistling",
        "a man whistles | a man whistling a tune",
    ),
    _event(
        "telephone",
        sounds.telephone,
        "telephone phone",
        "a telephone rings | a telephone ringing",
        "a phone rings | a phone ringing",
        "an old telephone trills | an old telephone trilling",
    ),
    _event(
        "alarm",
        sounds.alarm,
        "alarm alarms",
        "an alarm sounds | an alarm sounding",
        "an alarm goes off | an alarm going off",
        "a two tone alarm repeats | a two tone alarm",
    ),
    _event(
        "engine",
        sounds.engine,
        "engine motor",
        "an engine runs | an engine running",
        "a motor idles | a motor idling",
        "a truck engine rumbles | a truck engine rumbling",
    ),
    _event(
        "wind",
        sounds.wind,
        "wind winds gusts",
        "the wind blows | wind blowing",
        "wind howls | the howling wind",
        "strong wind gusts | strong gusts of wind",
    ),
    _event(
        "bird",
        sounds.bird,
        "bird birds",
        "a bird chirps | a bird chirping",
        "birds tweet | birds tweeting",
        "small birds sing | small birds singing",
    ),
    _event(
        "cricket",
        sounds.cricket,
        "cricket crickets insects",
        "crickets chirp | crickets chirping",
        "insects trill | insects trilling",
        "a cricket sings | a cricket singing",
    ),
    _event(
        "frog",
        sounds.frog,
        "frog frogs",
        "a frog croaks | a frog croaking",
        "frogs croak | frogs croaking",
        "a frog ribbits | a frog ribbiting",
    ),
    _event(
        "footsteps",
        sounds.footsteps,
        "footsteps walks walking steps",
        "footsteps are heard | footsteps",
        "a person walks | a person walking",
        "someone steps on gravel | footsteps on gravel",
    ),
    _event(
        "drip",
        sounds.drip,
        "drip drips dripping drops",
        "water drips | water dripping",
        "water drops land | drops of water landing",
        "a faucet drips | a dripping faucet",
    ),
    _event(
        "laser",
        sounds.laser,
        "laser lasers",
        "a laser fires | a laser firing",
        "a laser zaps | laser zaps",
        "a toy laser shoots | a toy laser shooting",
    ),
    _event(
        "melody",
        sounds.melody,
        "melody music",
        "a melody plays | a melody playing",
        "music plays | music playing",
        "an electronic melody repeats | an electronic melody",
    ),
    _event(
        "applause",
        sounds.applause,
        "applause applauds claps clapping",
        "a crowd applauds | a crowd clapping",
        "an audience claps | applause from an audience",
        "people applaud with loud applause | loud applause",
    ),
    _event(
        "static",
        sounds.static,
        "static",
        "radio static plays | radio static",
        "static hisses | hissing static",
        "loud static crackles | the crackle of static",
    ),
    _event(
        "heartbeat",
        sounds.heartbeat,
        "heart heartbeat",
        "a heart beats | a heart beating",
        "a heartbeat thumps | a thumping heartbeat",
        "a heartbeat pulses slowly | a slow heartbeat",
    ),
)

EVENTS: dict[str, Event] = {event.name: event for event in _ALL}
"""Every event of the built-in clips by name."""

RELATIONS = ("single", "sequence", "together")
"""How the events of a clip relate: one alone, the second after the first, or both at once."""

# {c}: clause, {n}: noun phrase; first and second event. Each template is filled by one event
# (single) or two; in "together" the caption may name either event first.
_TEMPLATES = {
    "single": ("{c0}", "{n0}", "{c0}", "the sound of {n0}", "{n0} can be heard"),
    "sequence": (
        "{c0} followed by {n1}",
        "{c0} and then {c1}",
        "{n0} followed by {n1}",
        "{c0} then {c1}",
        "{n0} and then {n1}",
    ),
    "together": (
        "{c0} while {c1}",
        "{c0} as {c1}",
        "{c0} and {c1}",
        "{n0} with {n1}",
        "{n0} and {n1}",
    ),
}


def caption(rng: np.random.Generator, relation: str, events: tuple[str, ...]) -> str:
    """Say in one sentence what is heard: `events` (one, or two in order of time) in `relation`."""
    template = str(rng.choice(_TEMPLATES[relation]))
    order = list(events)
    if relation == "together" and rng.random() < 0.5:
        order.reverse()
    words = {}
    for place, name in enumerate(order):
        phrases = EVENTS[name].phrases
        words[f"c{place}"], words[f"n{place}"] = phrases[int(rng.integers(len(phrases)))]
    sentence = template.format(**words)
    return sentence[0].upper() + sentence[1:]


def events_in(text: str) -> set[str]:
    """Return the names of the events whose key words occur in `text` (any case)."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    return {name for name, event in EVENTS.items() if words & event.keywords}
