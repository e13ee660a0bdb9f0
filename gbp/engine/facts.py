"""`Facts`: what a result says of its network besides numbers."""

from __future__ import annotations

from functools import cached_property

from ..importer.subgraph import Source
from ..plan.plan import Plan
from ..questions.head import Head
from ..questions.targets import Classes
from ..rules import Rule
from .notes import depends_on_image, notes_of
from .settings import Settings


class Facts:
    """The classes, the head and the notes of one plan, the same in each run.

    To find them anew would take as long as to run a small network.  They hold no plan, which they would keep
    alive.

    Parameters
    ----------
    plan, source
        The network.
    settings
        How the plan was made.
    labels
        The names of the classes, or None.
    """

    #: Most rules whose notes are remembered: a caller may make a rule for each call.
    _MAX_RULES = 16

    def __init__(
        self, plan: Plan, source: Source, settings: Settings, labels: tuple[str, ...] | None
    ) -> None:
        self._source, self._settings = source, settings
        self._rules: dict[tuple[str, bool, bool, bool], tuple[tuple[str, ...], bool]] = {}
        shape = plan.output_shape
        self._classes = Classes(shape, labels)
        #: How the model turns scores into probabilities; None where it does not.
        self.head: Head | None = None
        if source.head is not None:
            self.head = Head(source.head, shape, source.head_axes(1 + len(shape)))

    @cached_property
    def classes(self) -> Classes:
        """The classes.  Raises InputError where labels do not fit them."""
        self._classes.check_labels()
        return self._classes

    def under(self, plan: Plan, rule: Rule) -> tuple[tuple[str, ...], bool]:
        """The notes under a rule, and whether the map of a class depends on the image."""
        # Not the rule itself: its finish may have no hash, and would be kept alive.
        key = rule.name, bool(rule.forward_gate), bool(rule.gradient_gate), rule.finish is not None
        found = self._rules.get(key)
        if found is None:
            settings = self._settings
            notes = notes_of(plan, self._source, rule, settings.clamp, settings.tf32)
            found = notes, depends_on_image(plan, rule)
            if len(self._rules) >= self._MAX_RULES:
                self._rules.clear()
            self._rules[key] = found
        return found
