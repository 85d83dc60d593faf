"""How a sequence comes by its prefix: what could be done, reading it from the store, taking it into use."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .keeping import Keeping
from .planner import Action, Option, Situation
from .pool import PageAccountingError
from .prefix_cache import Match
from .radix import Run
from .rebuild import plan_rebuild
from .sequence import ABSENT, KVSequence, PrefixKey
from .sizing import pages_for
from .tier import Tier
from .window_pages import Reason, WindowPage


class Resuming(Keeping):
    """Plans, loads and attaches cached prefixes."""

    def _situations(self, key: PrefixKey, match: Match, from_store: bool = True) -> list[Situation]:
        """The points where the prompt could be resumed, with what each would take."""
        found = []
        reach = max(match.tiers[: 3 if from_store else 2])
        for limit in dict.fromkeys((reach, *match.tiers[:2])):
            resume = self._resume_at(match, limit, from_store)
            found.append(self._situation(key, match, resume, None))
            if limit > resume and self._can_rebuild(match, limit):
                ends = limit * self.page_size, resume * self.page_size
                rebuild = plan_rebuild(self._windows_by_layer, *ends, self.page_size)
                found.append(self._situation(key, match, limit, (rebuild, resume)))
        found.append(self._situation(key, match, 0, None))
        unique = list(dict.fromkeys(s for s in found if s is not None))
        return unique or [Situation(0, key.num_tokens, 0, 0, 0, 0, 0)]

    def _resume_at(self, match: Match, limit: int, from_store: bool) -> int:
        """The longest prefix of at most `limit` pages with windows that may be used."""
        lowest = Tier.DISK if from_store else Tier.HOST
        for end in self._windows.resume_points(match.path, limit):
            pages = self._windows.pages_for(match.path, match.run_at(end), end) or []
            if all(_fastest(p) <= lowest for group in pages for p in group):
                return end
        return 0

    def _situation(self, key: PrefixKey, match: Match, resume: int, rebuild) -> Situation | None:
        """What resuming after `resume` pages takes; None when the device has no room for it."""
        device, host = (min(t, resume) for t in (*match.tiers, 0)[:2])
        host = max(device, host)
        needs = [0] * len(self.groups)
        num_bytes = [0, 0, 0]
        if self._full is not None:
            needs[self._full] = resume - self._used_on_device(match, resume)  # its own cached pages make no room for it
            for tier, count in ((Tier.HOST, host - device), (Tier.DISK, resume - host)):
                if count:
                    num_bytes[tier] += count * self.shelves[tier].pools[self._full].bytes_per_page
        windows_at = rebuild[1] if rebuild else resume
        if windows_at:
            for pages in self._windows.pages_for(match.path, match.run_at(windows_at), windows_at) or []:
                for page in pages:
                    tier, group = _fastest(page), self._windows.groups[page.group][0]
                    num_bytes[tier] += self.shelves[tier].pools[group].bytes_per_page
                    needs[group] += not page.users[Tier.DEVICE]
        if rebuild:
            for group, _ in self._windows.groups:
                needs[group] += (
                    pages_for(resume * self.page_size, self.page_size) - rebuild[0].first[0] // self.page_size
                )
        if not self.shelves[0].fits(needs):
            return None
        size = self.page_size
        return Situation(
            resume * size,
            key.num_tokens,
            device * size,
            (host - device) * size,
            (resume - host) * size,
            num_bytes[Tier.HOST],
            num_bytes[Tier.DISK],
            rebuild[0] if rebuild else None,
            self._host_pages_usable and rebuild is None,
        )

    def _can_rebuild(self, match: Match, limit: int) -> bool:
        return self.planner.rebuild and self._full is not None and bool(self._windows.groups) and limit > 0

    def _start_loading(self, sequence: KVSequence, match: Match) -> None:
        """Read what the plan needs and only the store has; the sequence holds what is above until that has ended."""
        prefixes, full = self.prefixes, self.prefixes.full
        option = sequence.plan.chosen
        resume = option.resume // self.page_size
        windows_at = self._resume_at(match, resume, True)
        pages = self._windows.pages_for(match.path, match.run_at(windows_at), windows_at) if windows_at else None
        run = prefixes.end_at(match.path[-1], resume)
        sequence.is_loading, sequence.loads = True, 1
        if prefixes.is_loading(run):
            prefixes.after_load.append(lambda: self._load_ended(sequence))
            sequence.waits_for_another = True
            return
        if self._full is not None:
            for tier in (Tier.DEVICE, Tier.HOST, Tier.DISK):
                full.pin(run, tier)
                sequence.release_loads.append(lambda tier=tier: full.unpin(run, tier))
        needed = [p for group in pages or [] for p in group]
        for page in needed:
            tier = _fastest(page)
            self._windows.use(page, tier)
            sequence.release_loads.append(lambda page=page, tier=tier: self._windows.stop_use(page, tier))
        ended = lambda: self._load_ended(sequence)  # noqa: E731
        host = full.resident([*run.up()][::-1], resume, Tier.HOST) if self._full is not None else resume
        device = full.resident([*run.up()][::-1], resume, Tier.DEVICE)
        if max(host, device) < resume:
            if device > host:
                prefixes.write_down(run)
                host = full.resident([*run.up()][::-1], resume, Tier.HOST)
            sequence.loads += 1
            if not prefixes.load(run, host, resume, ended):
                sequence.loads -= 1
        for page in needed:
            if _fastest(page) == Tier.DISK:
                sequence.loads += 1
                if not prefixes.load_window(page, ended):
                    sequence.loads -= 1
        self._load_ended(sequence)

    def _load_ended(self, sequence: KVSequence) -> None:
        sequence.loads -= 1
        if sequence.loads == 0 and sequence.is_loading:
            self._loaded.append(sequence)

    def _settle_loads(self) -> None:
        """Go on with sequences whose loads have ended. Not done when they end: that may be while room is made for others."""
        while self._loaded:
            sequence = self._loaded.pop()
            if sequence.ended or not sequence.is_loading:
                continue
            if sequence.waits_for_another:
                self._load_again(sequence)
            else:
                self._stop_loading(sequence)

    def _load_again(self, sequence: KVSequence) -> None:
        """What another sequence was reading has ended: see what there is now."""
        sequence.is_loading = sequence.waits_for_another = False
        match = self.match(sequence.key)
        sequence.plan = self.planner.plan(self._situations(sequence.key, match))
        if Action.LOAD in sequence.plan.chosen.actions:
            self._start_loading(sequence, match)
        else:
            self._attach(sequence, match, sequence.plan.chosen)

    def _stop_loading(self, sequence: KVSequence) -> None:
        """Go on with what has arrived."""
        match = self.match(sequence.key)
        sequence.plan = self.planner.plan(self._situations(sequence.key, match, from_store=False))
        self._attach(sequence, match, sequence.plan.chosen)
        self._release_loading(sequence)

    def _release_loading(self, sequence: KVSequence) -> None:
        sequence.is_loading = False
        for release in sequence.release_loads:
            release()
        sequence.release_loads.clear()

    def _attach(self, sequence: KVSequence, match: Match, option: Option) -> None:
        """Give the sequence its prefix: block tables, windows, and the points where snapshots are wanted."""
        resume = option.resume // self.page_size
        prefixes = self.prefixes
        rebuild = option.rebuild
        start = self._resume_at(match, resume, from_store=False)
        if rebuild is not None and rebuild.first[0] > start * self.page_size:
            start = 0  # the rebuild reaches back to nothing that is stored
        pages = self._windows.pages_for(match.path, match.run_at(start), start) if start else None
        run = prefixes.end_at(match.path[-1], resume) if resume else None
        with self._kept(run, pages or []):
            if run is not None:
                self._hold_prefix(sequence, run, resume, Action.IN_PLACE in option.actions)
            self._fill_tables(sequence, run, resume)
            for number, group_pages in enumerate(pages or []):
                self._take_windows(sequence, number, group_pages)
        sequence.hit_tokens = sequence.num_computed = resume * self.page_size
        sequence.inserted = resume
        sequence.digests = list(sequence.key.digests[:resume])
        sequence.points = self._points(sequence.key, match, sequence.hit_tokens)
        if rebuild is not None:
            self._prepare_rebuild(sequence, rebuild, start)
        if resume and pages:
            snapshot = pages[0][-1].snapshot
            if snapshot is not None:
                snapshot = snapshot.main or snapshot
                self._windows.touch(snapshot, prefixes.full.clock)
                if snapshot.reason in (Reason.PROMPT_END, Reason.OUTPUT_END):
                    sequence.last_end = snapshot
        self._count_hit(sequence, match, resume, pages)

    @contextmanager
    def _kept(self, run: Run | None, windows: Sequence[Sequence[WindowPage]]) -> Iterator[None]:
        """While room is made on the device for a prefix, no part of it is evicted from where it is now."""
        used = [(p, t) for pages in windows for p in pages for t in self._memory_tiers if p.ids[t] is not None]
        for page, tier in used:
            self._windows.use(page, tier)
        for tier in self._memory_tiers if run is not None else ():
            self.prefixes.full.pin(run, tier)
        yield
        for tier in self._memory_tiers if run is not None else ():
            self.prefixes.full.unpin(run, tier)
        for page, tier in used:
            self._windows.stop_use(page, tier)

    def _hold_prefix(self, sequence: KVSequence, run: Run, resume: int, in_place: bool) -> None:
        full = self.prefixes.full
        full.touch(run)
        for node in run.up():
            node.num_uses += 1
        sequence.run = run
        full.pin(run, Tier.DEVICE)
        if in_place:
            full.pin(run, Tier.HOST)
            sequence.host_run = run
            self.mover.wait_for_host()
        elif not self.prefixes.promote(run, resume):
            raise PageAccountingError("KVCache: the device had room for a prefix and then had not")
        self.prefixes.refresh(run)

    def _fill_tables(self, sequence: KVSequence, run: Run | None, resume: int) -> None:
        path = [*run.up()][::-1] if run is not None else []
        full = self.prefixes.full
        for i, group in enumerate(self.groups):
            name = group.name
            if i == self._full:
                device = full.resident(path, resume, Tier.DEVICE)
                table = full.ids(path, 0, device, Tier.DEVICE)
                if device < resume:
                    offset = self.pools[name].num_pages
                    table += [offset + page for page in full.ids(path, device, resume, Tier.HOST)]
                sequence.block_tables[name], sequence.first_pages[name] = table, 0
            else:
                sequence.block_tables[name] = [ABSENT] * resume
                sequence.first_pages[name] = resume

    def _take_windows(self, sequence: KVSequence, number: int, pages: Sequence[WindowPage]) -> None:
        """Use cached windowed pages as the sequence's own, copied to the device where they are not there."""
        name = self.groups[self._windows.groups[number][0]].name
        for page in pages:
            if page.ids[Tier.DEVICE] is not None:
                self._windows.use(page, Tier.DEVICE)
            elif not self.prefixes.promote_window(page):
                raise PageAccountingError("KVCache: the device had room for a window and then had not")
            if page.snapshot is not None and not page.snapshot.in_tier[Tier.DEVICE]:
                self._windows.enter(page.snapshot, Tier.DEVICE)
            sequence.windows[number, page.index] = page
            sequence.block_tables[name][page.index] = page.ids[Tier.DEVICE]
        if pages:
            sequence.first_pages[name] = pages[0].index

    def _prepare_rebuild(self, sequence: KVSequence, rebuild, start: int) -> None:
        """Pages of its own for the positions that the rebuild writes."""
        sequence.needs_rebuild = True
        end = rebuild.end // self.page_size
        first = max(start, rebuild.first[0] // self.page_size)
        for group, _ in self._windows.groups:
            table = sequence.block_tables[self.groups[group].name]
            if not self.prefixes.make_room(Tier.DEVICE, group, end - first):
                raise PageAccountingError("KVCache: the device had room for a rebuild and then had not")
            pool = self.shelves[0].pools[group]
            table[first:end] = pool.allocate(end - first)
            pool.hold(end - first)
            name = self.groups[group].name
            sequence.first_pages[name] = min(sequence.first_pages[name], first)
        counters = self.prefixes.counters
        counters.rebuilds += 1
        counters.rebuild_tokens += rebuild.token_equivalents

    def _points(self, key: PrefixKey, match: Match, hit: int) -> dict[int, Reason]:
        """Positions where this prompt wants a snapshot; the end of the prompt counts most."""
        points = dict(self.policy.within(hit, key.num_tokens, self.page_size))
        matched = match.num_pages * self.page_size
        if self.policy.branches and matched > hit:
            points[matched] = Reason.BRANCH  # others share the prefix up to here
        if self.policy.prompt_end:
            points[self._replay_page(key) * self.page_size] = Reason.PROMPT_END
        points.pop(0, None)
        return points


def _fastest(page: WindowPage) -> int:
    return next(t for t, page_id in enumerate(page.ids) if page_id is not None)
