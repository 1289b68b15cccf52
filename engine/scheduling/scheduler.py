"""Decides what each step computes: no prefill, no decode, but computed catches up with known tokens."""

from collections.abc import Collection, Hashable
from collections.abc import Sequence as Many

import numpy as np

from engine.memory.pages import PagePool
from engine.planning.lengths import LengthEstimator
from engine.planning.ordering import OrderingPolicy, decode_heavy_first
from engine.planning.plan import Plan
from engine.request import FinishReason, Request, TokenIds
from engine.scheduling.arrangement import Arrangement
from engine.scheduling.batch import StepBatch
from engine.scheduling.batch_builder import Span, build_batch
from engine.scheduling.filling import Filling
from engine.scheduling.invariants import check_forest
from engine.scheduling.kin import Branch, Scopes
from engine.scheduling.layout import Slots
from engine.scheduling.occupancy import Occupancy
from engine.scheduling.outlook import Outlook
from engine.scheduling.residents import Residents
from engine.scheduling.segment import Segment
from engine.scheduling.sequence import Sequence
from engine.scheduling.turns import Turns, last_rank

_STEPS_PER_TURN = 32  # of a tenant, where it is not over earlier


class Scheduler:
    """Runs plans under a budget of KV pages (hard) and of rows a step (soft, never exceeded).

    A step is filled in this order: one row of every decoding sequence; prompt rows of running sequences;
    then sequences are admitted by priority and by fair turns of the tenants, a tenant's in the order of its
    plans, each with what is missing of the prefixes above it, top down. A sequence may run in the step that
    completes the prefixes it needs. What a job has waiting is ordered again as output lengths are learned.

    A plan is a forest of its own, or grows below a segment of an earlier one with the same sharing scope.
    Ranks follow priority, then the order in which sequences first ran.

    Pages are set aside for the output a sequence is expected to write. When they run out, in this order:
    pages set aside and unwritten are taken back; an idle prefix is evicted; the latest sequence is preempted
    (it keeps its output and is computed again later). Only an earlier sequence takes from a later one, and
    each fits alone, so the first unfinished one can always run.

    Counters: num_computed_prompt_tokens, num_recomputed_tokens (see Filling), num_preemptions, num_steps,
    peak_pages.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        max_batch_tokens: int,
        eos_token_ids: frozenset[int],
        lengths: LengthEstimator,
        ordering: OrderingPolicy = decode_heavy_first,
    ) -> None:
        self.num_preemptions = 0
        self.num_steps = 0
        self._pool = pool
        self._max_batch_tokens = max_batch_tokens
        self._eos_token_ids = np.array(sorted(eos_token_ids), dtype=np.int32)
        self._residents = Residents()
        self._occupancy = Occupancy(pool, self._residents)
        self._outlook = Outlook(self._residents, lengths, pool.page_size)
        self._unfinished: dict[int, Sequence] = {}
        self._turns = Turns(_STEPS_PER_TURN * max_batch_tokens)
        self._tenants: dict[str, int] = {}
        self._scopes = Scopes(self._occupancy)
        self._arrangement = Arrangement(ordering, self._outlook, self._residents)
        self._filling = Filling(self._residents)
        self._num_running = 0
        # Slots of the rows sampled by the step in flight.
        self._sampled: Slots | None = None

    @property
    def has_work(self) -> bool:
        return bool(self._unfinished)

    @property
    def num_computed_prompt_tokens(self) -> int:
        return self._filling.num_computed_prompt_tokens

    @property
    def num_recomputed_tokens(self) -> int:
        return self._filling.num_recomputed_tokens

    @property
    def running_ids(self) -> frozenset[int]:
        """Requests that have pages now."""
        return frozenset(self._residents.request_id[self._residents.is_leaf].tolist())

    @property
    def peak_pages(self) -> int:
        """Most pages in use at a time, those set aside for outputs included."""
        return self._pool.peak_used

    @property
    def num_shared_pages(self) -> int:
        """Pages that shared prefixes have now."""
        return self._residents.num_shared_pages

    def add(
        self,
        plan: Plan,
        *,
        priority: int = 0,
        tenant: str = "",
        scope: Hashable = None,
        below: Segment | None = None,
        job: Hashable = None,
    ) -> None:
        """Takes in a plan's requests, behind those of the same tenant and priority.

        What runs already goes on, but nothing of lower priority is admitted before these are.
        scope: requests of later plans may share with these if theirs is the same; None: nobody may.
        below: the segment, of `branches`, that all prompts of the plan go on from.
        job: what the requests are a part of; those of one job are expected to have outputs of like lengths.
        """
        number = self._tenants.setdefault(tenant, len(self._tenants))
        segments: list[Segment] = []
        for planned in plan.segments:
            parent = below if planned.parent is None else segments[planned.parent]
            if planned.request is None:
                segments.append(Segment(parent, planned.token_ids))
            else:
                request_id = planned.request.request_id
                assert request_id not in self._unfinished, f"request {request_id} was added twice"
                sequence = Sequence(
                    parent,
                    planned.token_ids,
                    planned.request,
                    priority=priority,
                    tenant=number,
                    job=self._outlook.join(job),
                )
                self._unfinished[request_id] = sequence
                self._turns.add(sequence)
                segments.append(sequence)
                self._scopes.add(sequence, scope)
            if parent is not None:
                parent.num_members += 1

    def branches(self, requests: Many[Request], scope: Hashable) -> tuple[list[Branch], list[Request]]:
        """The requests whose prompts can go on from segments of earlier plans in the scope, and the others.

        Good until the next `drop` or step.
        """
        assert self._sampled is None, "between commit and the next step only"
        return self._scopes.branches(requests, scope)

    def drop(self, request_ids: Collection[int]) -> None:
        """Forgets requests, wherever they stand; ids that are not held (any more) are ignored."""
        assert self._sampled is None, "drop between commit and the next step only"
        for request_id in request_ids:
            sequence = self._unfinished.get(request_id)
            if sequence is not None:
                self._end(sequence)

    def next_batch(self, least_priority: int | None = None) -> StepBatch:
        """The next step; `commit` must follow. Only while there is work.

        least_priority: the step is for requests of it and above alone, if any of them can go on; those below
        may have to give them memory.
        """
        assert self.has_work, "no work"
        assert self._sampled is None, "the last batch was not committed"
        if self._arrangement.is_due(len(self._unfinished) - self._num_running):
            self._turns.reorder(self._arrangement.arrange)
        self._give_room_to_decode()
        decoding, spans = self._choose(least_priority)
        if not (spans or len(decoding)):
            decoding, spans = self._choose(None)
        batch, self._sampled = build_batch(
            self._residents, decoding, spans, self._pool.page_size, self._eos_token_ids
        )
        assert 0 < batch.num_tokens <= self._max_batch_tokens, f"{batch.num_tokens} rows in a step"
        self.num_steps += 1
        return batch

    def commit(self, batch: StepBatch, token_ids: TokenIds, stopped: Collection[int] = ()) -> list[Sequence]:
        """Takes the sampled tokens in.

        token_ids: int32 [S], one per sampled row of `batch`.
        stopped: requests of the batch that a stop string or stop token ends with this token.
        Returns: the sequences that are finished.
        """
        slots, self._sampled = self._sampled, None
        assert slots is not None, "no batch to commit"
        assert len(slots) == len(token_ids) == len(batch.request_ids)
        table = self._residents
        table.append_tokens(slots, token_ids)
        self._filling.settle()
        num_generated = table.num_tokens[slots] - table.num_prompt[slots]
        ended = (token_ids[:, None] == self._eos_token_ids).any(axis=1) & ~table.ignore_eos[slots]
        if stopped:
            ended |= np.isin(batch.request_ids, list(stopped))
        self._outlook.observe(slots, ended)
        finished = []
        for index in np.flatnonzero(ended | (num_generated >= table.max_tokens[slots])).tolist():
            sequence = table.sequence_at(int(slots[index]))
            sequence.finish_reason = FinishReason.STOP if ended[index] else FinishReason.LENGTH
            self._outlook.learn(sequence, int(num_generated[index]))
            self._end(sequence)
            finished.append(sequence)
        self._arrangement.num_ended += len(finished)
        return finished

    def expected_output_tokens(self, requests: Many[Request]) -> int:
        """Of these requests' whole outputs together; of one that is not here, what is expected of any."""
        return sum(
            self._outlook.length(request.sampling, self._unfinished.get(request.request_id))
            for request in requests
        )

    def check_invariants(self) -> None:
        """Asserts that pages, holds and members agree with who runs and who is unfinished."""
        self._pool.check_invariants()
        check_forest(self._unfinished.values(), self._occupancy)
        assert self._num_running == int(self._residents.is_leaf.sum()) <= self._max_batch_tokens
        waiting = {id(sequence) for sequence in self._turns.waiting()}
        for sequence in self._unfinished.values():
            is_running = sequence.slot is not None
            assert (id(sequence) in waiting) == (not is_running)
            assert (sequence in self._filling) == (is_running and not self._residents.decoding[sequence.slot])

    def _end(self, sequence: Sequence) -> None:
        del self._unfinished[sequence.request.request_id]
        sequence.is_over = True
        self._outlook.leave(sequence)
        if sequence.slot is not None:
            self._stop_running(sequence)
        self._occupancy.forget(sequence)

    def _stop_running(self, sequence: Sequence) -> None:
        self._occupancy.release(sequence)
        self._num_running -= 1
        self._filling.discard(sequence)

    # Decoding sequences

    def _give_room_to_decode(self) -> None:
        """A page for every decoding leaf whose next token has none, earliest first."""
        table, pool = self._residents, self._pool
        is_short = table.decoding & (table.num_tokens > table.num_pages * pool.page_size)
        if not is_short.any():
            return
        slots = np.flatnonzero(is_short)
        slots = slots[np.argsort(table.rank[slots])]
        wanted = self._outlook.pages_in(slots) - table.num_pages[slots]
        sequences = [table.sequence_at(slot) for slot in slots.tolist()]
        for index, sequence in enumerate(sequences):
            if sequence.slot is None:
                continue  # an earlier one took its pages
            num_behind = len(sequences) - index
            if pool.num_free or self._make_room(sequence, num_behind):
                spare = max(pool.num_free - num_behind, 0)
                self._occupancy.extend(sequence, 1 + min(int(wanted[index]) - 1, spare))

    def _make_room(self, sequence: Sequence, num_pages: int) -> bool:
        """Frees a page for `sequence`, and up to `num_pages` where that costs nothing.

        Returns whether it did: the latest of all running sequences gives itself up instead.
        """
        self._occupancy.reclaim_unwritten(num_pages)
        while not self._pool.num_free and not self._occupancy.evict_idle():
            self._preempt(self._residents.latest_leaf())
        return sequence.slot is not None

    def _give_way(self, sequence: Sequence) -> bool:
        """Preempts the latest running sequence, if it is of a lower priority than `sequence`."""
        if not self._num_running or (latest := self._residents.latest_leaf()).priority >= sequence.priority:
            return False
        self._preempt(latest)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._stop_running(sequence)
        self._turns.give_back(sequence)
        self.num_preemptions += 1

    def _choose(self, least_priority: int | None) -> tuple[Slots, list[Span]]:
        """Which leaves decode in the next step, and its prompt rows."""
        slots = np.flatnonzero(self._residents.decoding)
        if least_priority is not None:
            slots = slots[self._residents.rank[slots] <= last_rank(least_priority)]
        self._advance_decoding(slots)
        return slots, self._fill(self._max_batch_tokens - len(slots), least_priority)

    def _advance_decoding(self, slots: Slots) -> None:
        """Counts these leaves' rows as computed."""
        self._residents.num_computed[slots] += 1
        rows = np.bincount(self._residents.tenant[slots], minlength=len(self._tenants))
        for tenant in np.flatnonzero(rows).tolist():
            self._turns.charge(tenant, int(rows[tenant]))

    # Prompts

    def _fill(self, num_rows: int, least_priority: int | None) -> list[Span]:
        """Up to `num_rows` prompt rows: of running sequences first, then of sequences admitted for them."""

        def takes_part(sequence: Sequence) -> bool:
            return least_priority is None or sequence.priority >= least_priority

        spans: list[Span] = []
        for sequence in filter(takes_part, self._filling.in_order()):
            num_rows -= self._advance(sequence, num_rows, spans)
        num_to_come: int | None = None
        while num_rows and (first := self._next_waiting()) is not None and takes_part(first):
            if num_to_come is None:
                num_to_come = self._outlook.pages_still_to_come()
            if not self._admit(first, num_to_come):
                if least_priority is not None and self._give_way(first):
                    num_to_come = None
                    continue
                break
            num_rows -= self._advance(first, num_rows, spans)
        return spans

    def _advance(self, sequence: Sequence, num_rows: int, spans: list[Span]) -> int:
        num_used = self._filling.advance(sequence, num_rows, spans)
        self._turns.charge(sequence.tenant, num_used)
        return num_used

    def _admit(self, sequence: Sequence, num_to_come: int) -> bool:
        """Lets the first waiting sequence run if its expected pages are there beside `num_to_come` others."""
        own_pages = self._outlook.pages_of(sequence)
        needed = own_pages + self._occupancy.pages_missing_above(sequence)
        if needed + num_to_come > self._occupancy.pages_within_reach(sequence):
            return False
        self._turns.take(sequence)
        self._occupancy.settle(sequence, own_pages)
        self._num_running += 1
        self._filling.add(sequence)
        if not sequence.has_run:
            sequence.has_run = True
            sequence.num_cached_tokens = self._residents.num_computed_above(sequence)
        return True

    def _next_waiting(self) -> Sequence | None:
        """The sequence to admit next, unless each row of a step is taken already."""
        return self._turns.first() if self._num_running < self._max_batch_tokens else None
