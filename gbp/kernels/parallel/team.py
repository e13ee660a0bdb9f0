"""Native code with which threads work through a row of instructions together.  It needs no interpreter.

An instruction is one call of a kernel: the address of the kernel's entry, its packed arguments, the number of
parts of its work, and the number of phases.  It may have a condition: a word that must hold some value.
Otherwise the instruction is skipped.

Each thread that asks gets the next part of the current phase.  A thread that comes late finds fewer parts
left, and nobody waits for it; others wait only for a thread that holds a part.  The thread that finishes the
last part of a phase publishes the next phase.

To take a part, a thread needs one word, the ticket.  Its upper half is a number that grows with each
published phase; its lower half says which parts are left: the first, and how many.  A thread takes a part by
a compare-and-swap of the ticket for one with a part less.  With an old ticket the swap fails, so the thread
takes nothing and reads nothing that may have been freed.

Members of even number take the first part that is left, those of odd number the last.  Most kernels cut their
work by rows of pixels, so a thread mostly reads the rows that it wrote in the call before.  Those are in its
own core's cache.

A thread without work spins: it reads the ticket again and again for some microseconds, about as long as
waking up takes; a helper longer, where the next run begins soon.  Then it announces that it sleeps, reads it
once more, and waits for a lock, which the thread that publishes the next phase releases.

Member 0 of a team is the thread that called `run_team`.  The other members run `work`, which never ends.  A
member's number is its slot, by which kernels find the member's scratch.
"""

from __future__ import annotations

from ..codegen.atomics import add_word, call_part, call_two, load_word, pause, replace_word, store_word
from ..codegen.jit import INT, Native, device_function

#: Words of an instruction: entry, block of arguments, parts, phases, address of the condition's word or 0,
#: its value.
INSTRUCTION = 6
_BYTES = 8 * INSTRUCTION

# Offsets of a team's words, in bytes.  Words that different threads write are on different cache lines.
_LINE = 128
TICKET = 0
LEFT = _LINE  # parts of this phase that are not done yet
# The current instruction, the end of the row, the current phase, its parts, how many members may work.
AT, STOP, PHASE, PARTS, LIMIT = range(2 * _LINE, 2 * _LINE + 40, 8)
RUN = 3 * _LINE  # the number of this run; each has a higher one
DONE = 4 * _LINE  # the number of the last run that is finished
# Addresses of the functions that acquire and release a lock; how often a caller spins before it sleeps, and
# how often a helper.
ACQUIRE, RELEASE, SPINS, HELPERS_SPINS = range(5 * _LINE, 5 * _LINE + 32, 8)
MEMBERS = 6 * _LINE
# Offsets of a member's words.
ASLEEP, LOCK, TEAM, SLOT = range(0, 32, 8)
MEMBER_BYTES = _LINE

# A ticket, from its lowest bit: how many parts are left, the first of them, the number of the phase.
_FIRST_BITS, _NUMBER_BITS = 16, 32
MAX_PARTS = (1 << _FIRST_BITS) - 1
_NEXT_FIRST, _NEXT_NUMBER = 1 << _FIRST_BITS, 1 << _NUMBER_BITS


@device_function
def _wake(team: int, slot: int) -> None:
    member = team + MEMBERS + slot * MEMBER_BYTES
    if load_word(member + ASLEEP) == 1 and replace_word(member + ASLEEP, 1, 0):
        call_two(load_word(team + RELEASE), load_word(member + LOCK), 0)


@device_function
def _is_off(at: int) -> bool:
    """Whether this instruction is skipped."""
    word = load_word(at + 32)
    return word != 0 and load_word(word) != load_word(at + 40)


@device_function
def _publish_next(team: int, slot: int) -> None:
    """Go on after a finished phase: compute phases of one part here, and publish the next larger one."""
    at, phase, stop = load_word(team + AT), load_word(team + PHASE) + 1, load_word(team + STOP)
    parts = 0
    while True:
        if at != stop and phase == load_word(at + 24):
            at, phase = at + _BYTES, 0
        while at != stop and phase == 0 and _is_off(at):
            at += _BYTES
        if at == stop:
            store_word(team + DONE, load_word(team + RUN))
            _wake(team, 0)
            return
        parts = load_word(at + 16)
        if parts > 1:
            break
        call_part(load_word(at), load_word(at + 8), 0, 1, 1, slot, phase)
        phase += 1
    store_word(team + AT, at)
    store_word(team + PHASE, phase)
    store_word(team + PARTS, parts)
    store_word(team + LEFT, parts)
    members = min(parts, load_word(team + LIMIT))
    number = load_word(team + TICKET) >> _NUMBER_BITS << _NUMBER_BITS
    store_word(team + TICKET, number + _NEXT_NUMBER + parts)
    for other in range(members):
        if other != slot:
            _wake(team, other)


@device_function
def _work_once(team: int, slot: int) -> bool:
    """Take a part and compute it.  Returns False if there is none."""
    ticket = load_word(team + TICKET)
    part, left = ticket >> _FIRST_BITS & MAX_PARTS, ticket & MAX_PARTS
    if left == 0 or slot >= load_word(team + LIMIT):
        return False
    rest = ticket - 1
    if slot % 2 == 0:
        rest += _NEXT_FIRST
    else:
        part += left - 1
    if replace_word(team + TICKET, ticket, rest):
        # Nobody changes the words that are read here until this part is done.
        at, parts = load_word(team + AT), load_word(team + PARTS)
        call_part(load_word(at), load_word(at + 8), part, part + 1, parts, slot, load_word(team + PHASE))
        if add_word(team + LEFT, -1) == 1:
            _publish_next(team, slot)
    return True


@device_function
def _sleep(team: int, slot: int, run: int) -> None:
    """Sleep until somebody publishes parts, or for member 0 until the run is done."""
    member = team + MEMBERS + slot * MEMBER_BYTES
    store_word(member + ASLEEP, 1)
    # A thread that published before the announcement woke nobody, so look for its parts.
    ready = load_word(team + TICKET) & MAX_PARTS != 0 and slot < load_word(team + LIMIT)
    if slot == 0:
        ready = ready or load_word(team + DONE) == run
    if ready and replace_word(member + ASLEEP, 1, 0):
        return
    call_two(load_word(team + ACQUIRE), load_word(member + LOCK), 1)


@device_function
def _member_loop(team: int, slot: int, run: int) -> None:
    """Work.  Member 0 returns when this run is done; the others never return."""
    spins, limit = 0, team + (SPINS if slot == 0 else HELPERS_SPINS)
    while slot != 0 or load_word(team + DONE) != run:
        if _work_once(team, slot):
            spins = 0
        elif spins < load_word(limit):
            spins += 1
            pause()
        else:
            _sleep(team, slot, run)
            spins = 0


def _run(team: int, first: int, stop: int, members: int) -> None:
    """Run the instructions from address `first` to `stop` as member 0 of a team of `members`."""
    run = load_word(team + RUN) + 1
    store_word(team + RUN, run)
    store_word(team + AT, first)
    store_word(team + PHASE, -1)
    store_word(team + STOP, stop)
    store_word(team + LIMIT, members)
    _publish_next(team, 0)
    _member_loop(team, 0, run)


def _work(member: int) -> None:
    """Work as a helper: whenever there is work, for ever."""
    _member_loop(load_word(member + TEAM), load_word(member + SLOT), -1)


def _call(team: int, members: int) -> None:
    """Wake the first `members` members, because work for them will come at once."""
    for slot in range(1, members):
        _wake(team, slot)


def _run_alone(first: int, stop: int) -> None:
    """Run the instructions from address `first` to `stop` on this thread alone, in slot 0."""
    at = first
    while at < stop:
        if not _is_off(at):
            for phase in range(load_word(at + 24)):
                parts = load_word(at + 16)
                call_part(load_word(at), load_word(at + 8), 0, parts, parts, 0, phase)
        at += _BYTES


def _spin(times: int) -> None:
    """Wait as long as a thread that spins so many times."""
    for _ in range(times):
        pause()


run_team = Native(_run, [INT] * 4)
work = Native(_work, [INT])
call = Native(_call, [INT] * 2)
run_alone = Native(_run_alone, [INT] * 2)
spin = Native(_spin, [INT])
