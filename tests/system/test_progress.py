"""What the callbacks of jobs pass on."""

from deploykit.system.progress import Note, Step, without_repeats


def test_without_repeats_of_notes_and_steps():
    told = []
    progress = without_repeats(told.append)
    events = [Note("using a"), Step("comparing"), Note("using b"), Note("using a")]
    for event in [*events, Step("comparing")]:
        progress(event)
    assert told == [Note("using a"), Step("comparing"), Note("using b"), Step("comparing")]
