"""Threads that work through a program together, without the interpreter, and wait asleep.

A program is a row of instructions: a kernel's entry, its packed arguments, how many parts its work has, and
how many phases; and perhaps a word that must hold some value, else the instruction is passed over.  The parts
of a phase are handed out one by one as threads come.  So nobody waits for a thread that is late, but only for
one that holds a part.  Whoever finishes the last part of a phase publishes the next: no thread has to be
there but those that work.

One word, the ticket, says all that a thread needs to take a part: a number that grows with each phase that is
published, and how many parts are left to hand out.  A part is taken by replacing the ticket by one with a
part less.  So a thread that comes with an old ticket takes nothing, and reads nothing that may be gone.

A thread without work looks at the ticket for some microseconds, about what it takes to be woken.  Then it
announces that it sleeps, looks once more, and sleeps on a lock until somebody publishes more.

Member 0 is whoever called `run_team`; the others run `work`, which never ends.  A member's number is its
slot: kernels find their scratch by it.
"""

from __future__ import annotations

from ..codegen.atomics import add_word, call_part, call_two, load_word, pause, replace_word, store_word
from ..codegen.jit import INT, Native, device_function

#: Words of an instruction: entry, block, parts, phases, address of a word or 0, what that must hold.
INSTRUCTION = 6
_BYTES = 8 * INSTRUCTION

# Words of a team, in bytes; what different threads write lies on different lines of the cache.
_LINE = 128
TICKET = 0
LEFT = _LINE  # parts of this phase that are not done yet
AT, STOP, PHASE, PARTS, LIMIT = range(2 * _LINE, 2 * _LINE + 40, 8)  # this instruction, the end, members
RUN = 3 * _LINE  # grows with each run
DONE = 4 * _LINE  # the last run that was finished
ACQUIRE, RELEASE, SPINS = range(5 * _LINE, 5 * _LINE + 24, 8)  # functions of a lock; looks before it sleeps
MEMBERS = 6 * _LINE
# Words of a member.
ASLEEP, LOCK, TEAM, SLOT = range(0, 32, 8)
MEMBER_BYTES = _LINE

_COUNT_BITS = 16
MAX_PARTS = (1 << _COUNT_BITS) - 1


@device_function
def _wake(team: int, slot: int) -> None:
    member = team + MEMBERS + slot * MEMBER_BYTES
    if load_word(member + ASLEEP) == 1 and replace_word(member + ASLEEP, 1, 0):
        call_two(load_word(team + RELEASE), load_word(member + LOCK), 0)


@device_function
def _is_off(at: int) -> bool:
    """Whether this instruction is passed over."""
    word = load_word(at + 32)
    return word != 0 and load_word(word) != load_word(at + 40)


@device_function
def _publish_next(team: int, slot: int) -> None:
    """Go on after a phase that is done: what has one part is done at once, more are published."""
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
    store_word(team + TICKET, ((load_word(team + TICKET) >> _COUNT_BITS) + 1 << _COUNT_BITS) + parts)
    for other in range(members):
        if other != slot:
            _wake(team, other)


@device_function
def _work_once(team: int, slot: int) -> bool:
    """Take a part and do it, if there is one."""
    ticket = load_word(team + TICKET)
    if ticket & MAX_PARTS == 0 or slot >= load_word(team + LIMIT):
        return False
    if replace_word(team + TICKET, ticket, ticket - 1):
        # Until this part is done nobody writes what is read here.
        at, parts = load_word(team + AT), load_word(team + PARTS)
        part = parts - (ticket & MAX_PARTS)
        call_part(load_word(at), load_word(at + 8), part, part + 1, parts, slot, load_word(team + PHASE))
        if add_word(team + LEFT, -1) == 1:
            _publish_next(team, slot)
    return True


@device_function
def _sleep(team: int, slot: int, run: int) -> None:
    """Sleep until somebody publishes parts, or for member 0 until the run is done."""
    member = team + MEMBERS + slot * MEMBER_BYTES
    store_word(member + ASLEEP, 1)
    # Whoever published before could not see the announcement, so it must be seen here.
    ready = load_word(team + TICKET) & MAX_PARTS != 0 and slot < load_word(team + LIMIT)
    if slot == 0:
        ready = ready or load_word(team + DONE) == run
    if ready and replace_word(member + ASLEEP, 1, 0):
        return
    call_two(load_word(team + ACQUIRE), load_word(member + LOCK), 1)


@device_function
def _member_loop(team: int, slot: int, run: int) -> None:
    """Work until `run` is done; member 0 alone ever stops."""
    looks, most = 0, load_word(team + SPINS)
    while slot != 0 or load_word(team + DONE) != run:
        if _work_once(team, slot):
            looks = 0
        elif looks < most:
            looks += 1
            pause()
        else:
            _sleep(team, slot, run)
            looks = 0


def _run(team: int, first: int, stop: int, members: int) -> None:
    """Run the instructions from address `first` to `stop` as member 0 of so many."""
    run = load_word(team + RUN) + 1
    store_word(team + RUN, run)
    store_word(team + AT, first)
    store_word(team + PHASE, -1)
    store_word(team + STOP, stop)
    store_word(team + LIMIT, members)
    _publish_next(team, 0)
    _member_loop(team, 0, run)


def _work(member: int) -> None:
    """Work for the team whenever there is work, for ever."""
    _member_loop(load_word(member + TEAM), load_word(member + SLOT), -1)


def _run_alone(first: int, stop: int) -> None:
    """Run the instructions from address `first` to `stop` on this thread alone, in slot 0."""
    at = first
    while at < stop:
        if not _is_off(at):
            for phase in range(load_word(at + 24)):
                parts = load_word(at + 16)
                call_part(load_word(at), load_word(at + 8), 0, parts, parts, 0, phase)
        at += _BYTES


def _look(times: int) -> None:
    """Wait as a thread does that looks for work so many times."""
    for _ in range(times):
        pause()


run_team = Native(_run, [INT] * 4)
work = Native(_work, [INT])
run_alone = Native(_run_alone, [INT] * 2)
look = Native(_look, [INT])
