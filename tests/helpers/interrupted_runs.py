"""Runs of ``predict`` that end before they are done."""

from deploykit.commands.predict.outputs import Outputs


def interrupt_after(monkeypatch, count):
    """Let the next run be interrupted when it has predicted some files."""
    show = Outputs.show

    def interrupted(self, ordinal, row):
        if ordinal == count:
            monkeypatch.setattr(Outputs, "show", show)
            raise KeyboardInterrupt
        show(self, ordinal, row)

    monkeypatch.setattr(Outputs, "show", interrupted)
