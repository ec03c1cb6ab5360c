"""The laws of dealing out videos, in whatever order things happen and whoever dies when."""

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jobs.assignments import MAX_LOSSES, Assignments, Holding
from jobs.failures import failed_row
from jobs.plan import Task
from schemas.errors import WorkerDiedError
from schemas.video import VideoRef

MAX_VIDEOS = 40
numbers_of_videos = st.integers(min_value=0, max_value=MAX_VIDEOS)
few = st.integers(min_value=1, max_value=6)


def video(video_id):
    return VideoRef(video_id, f"/corpus/{video_id}", 1000, 1)


def ids(num_videos):
    return [f"{number:02}" for number in range(num_videos)]


killers = st.sets(st.sampled_from(ids(MAX_VIDEOS)), max_size=4)


def tasks_of(video_ids):
    return [Task(video(video_id)) for video_id in video_ids]


def row(video_id):
    error = WorkerDiedError("any row will do")
    return failed_row(video(video_id), error, fingerprint="", attempts=1, writer="test")


def held(holding):
    return [*holding.unassembled, *holding.uncommitted]


class Dealing(RuleBasedStateMachine):
    """Workers take, assemble, commit and die in any order; in the end those that live finish."""

    @initialize(videos=numbers_of_videos, workers=few, min_videos=few, max_videos=few)
    def begin(self, videos, workers, min_videos, max_videos):
        self.video_ids = ids(videos)
        self.max_videos = max_videos
        self.assignments = Assignments(
            tasks_of(self.video_ids),
            num_workers=workers,
            min_videos=min_videos,
            max_videos=max_videos,
        )
        self.crew = [Holding() for _ in range(workers)]
        self.num_lost = Counter()
        self.ended = Counter()

    @rule(data=st.data())
    def give_a_worker_videos(self, data):
        self.deal(data.draw(st.sampled_from(self.crew)))

    @precondition(lambda self: any(holding.unassembled for holding in self.crew))
    @rule(data=st.data())
    def assemble_some(self, data):
        busy = [holding for holding in self.crew if holding.unassembled]
        holding = data.draw(st.sampled_from(busy))
        self.assignments.assembled(holding, self.some_of(holding.unassembled, data))

    @precondition(lambda self: any(holding.uncommitted for holding in self.crew))
    @rule(data=st.data())
    def commit_some(self, data):
        busy = [holding for holding in self.crew if holding.uncommitted]
        holding = data.draw(st.sampled_from(busy))
        self.commit(holding, self.some_of(holding.uncommitted, data))

    @rule(data=st.data(), with_node=st.booleans())
    def kill_a_worker(self, data, with_node):
        holding = data.draw(st.sampled_from(self.crew))
        self.crew[self.crew.index(holding)] = Holding()
        videos = held(holding)
        condemned = self.assignments.lost(holding, with_node=with_node)
        self.num_lost.update(videos)
        if condemned is not None:
            [video_id] = videos
            assert video_id == condemned.video_id
            assert self.num_lost[video_id] > 1, "it was not the first worker that died with it"
            if with_node:
                assert self.num_lost[video_id] > MAX_LOSSES, "a node takes more than that"
            self.ended.update(videos)

    @invariant()
    def no_video_is_in_two_hands_or_ends_twice(self):
        if hasattr(self, "crew"):
            places = Counter(video_id for holding in self.crew for video_id in held(holding))
            assert max((places + self.ended).values(), default=1) == 1

    def teardown(self):
        """Nobody dies any more: all must end, and soon."""
        for _ in range(2 * MAX_VIDEOS):
            for holding in self.crew:
                self.deal(holding)
                self.assignments.assembled(holding, list(holding.unassembled))
                self.commit(holding, list(holding.uncommitted))
        assert self.assignments.is_done
        assert self.ended == Counter(self.video_ids)

    def deal(self, holding):
        num_held, had_suspect = len(held(holding)), holding.has_suspect
        dealt = self.assignments.deal(holding)
        assert len(dealt) <= self.max_videos
        assert len(holding.unassembled) <= 2 * self.max_videos
        if holding.has_suspect:
            assert len(held(holding)) == 1, "a suspect has its worker for itself"
        if had_suspect and num_held:
            assert not dealt

    def commit(self, holding, video_ids):
        self.assignments.committed(holding, map(row, video_ids))
        self.ended.update(video_ids)

    def some_of(self, video_ids, data):
        return data.draw(st.lists(st.sampled_from(list(video_ids)), unique=True, min_size=1))


TestDealing = Dealing.TestCase


def test_what_was_assembled_when_its_worker_died_is_done_again_without_suspicion():
    assignments = Assignments(tasks_of(ids(4)), num_workers=1, min_videos=4, max_videos=4)
    dead, heir = Holding(), Holding()
    assignments.deal(dead)
    assignments.assembled(dead, list(dead.unassembled))
    assert assignments.lost(dead) is None
    assert len(assignments.deal(heir)) == 4


@given(
    num_videos=numbers_of_videos,
    num_workers=few,
    max_videos=few,
    encode_killers=killers,
    commit_killers=killers,
    node_killers=killers,
    random=st.builds(Random, st.integers(min_value=0)),
)
def test_the_videos_that_kill_their_workers_are_condemned_and_no_others(
    num_videos, num_workers, max_videos, encode_killers, commit_killers, node_killers, random
):
    """Some kill in an encoder call, some in a commit, some their node; others are near them."""
    assignments = Assignments(
        tasks_of(ids(num_videos)), num_workers=num_workers, min_videos=2, max_videos=max_videos
    )
    crew = [Holding() for _ in range(num_workers)]
    max_deaths = 2 * len(encode_killers) + (MAX_LOSSES + 2) * len(commit_killers | node_killers)
    all_killers = encode_killers | commit_killers | node_killers
    condemned, num_deaths = [], 0
    while not assignments.is_done:
        place = random.randrange(num_workers)
        holding = crew[place]
        assignments.deal(holding)
        in_call = list(holding.unassembled)[: random.randint(1, max_videos)]
        with_node = not node_killers.isdisjoint(in_call)
        is_dead = with_node or not encode_killers.isdisjoint(in_call)
        if not is_dead:
            assignments.assembled(holding, in_call)
        if not is_dead and (not holding.unassembled or random.random() < 0.3):
            is_dead = not commit_killers.isdisjoint(holding.uncommitted)
            if not is_dead:
                assignments.committed(holding, map(row, list(holding.uncommitted)))
        if is_dead:
            num_deaths += 1
            assert num_deaths <= max_deaths, "each costs a few workers, and then no more"
            crew[place] = Holding()
            if task := assignments.lost(holding, with_node=with_node):
                condemned.append(task.video_id)
    assert sorted(condemned) == sorted(all_killers & set(ids(num_videos)))
