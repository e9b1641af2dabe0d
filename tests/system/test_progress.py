"""What the callbacks of jobs pass on."""

from deploykit.system.progress import Note, Step, without_repeats


def test_a_note_is_told_once_and_a_step_each_time():
    told = []
    progress = without_repeats(told.append)
    events = [Note("using a"), Step("comparing"), Note("using b"), Note("using a")]
    for event in [*events, Step("comparing")]:
        progress(event)
    assert told == [Note("using a"), Step("comparing"), Note("using b"), Step("comparing")]
