"""What the scripts of this folder have in common: from the command line to tables."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from answering import answer_all, blind_answers
from corpus import Corpus, model_parser, open_corpus, write_result
from settings import Setting

from examples.toyworld.arguments import at_least
from pipeline.evaluation.records import Answered
from pipeline.evaluation.report import ResultRow, summarize

Rows = tuple[ResultRow, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """The answers of each setting, and their ``rows``: compared with the first setting."""

    corpus: Corpus
    answers: Mapping[str, Sequence[Answered]]
    rows: Rows

    def against(self, reference: str, others: Iterable[str]) -> Rows:
        """Rows of some settings, compared with another one than the first."""
        chosen = [self.answers[name] for name in (reference, *others)]
        return summarize(self.corpus.questions, chosen, by=("kind",))


def run(
    description: str,
    name: str,
    *,
    settings: Callable[[Corpus], Sequence[Setting]],
    tables: Callable[[Results], Iterable[str]],
) -> None:
    """Ask all questions at all settings; print tables, and keep the rows as JSON under a name."""
    parser = model_parser(description)
    parser.add_argument(
        "--processes", type=at_least(1), default=os.cpu_count() or 1, help="that answer questions"
    )
    given = parser.parse_args()
    corpus = open_corpus(given)
    answers = [
        *answer_all(corpus, settings(corpus), processes=given.processes),
        blind_answers(corpus),
    ]
    rows = summarize(corpus.questions, answers, by=("kind", "level"))
    write_result(corpus, name, [row.to_json() for row in rows])
    num_videos = len({question.video_id for question in corpus.questions})
    print(f"### {corpus.name}: {len(corpus.questions)} questions about {num_videos} videos\n")
    for table in tables(Results(corpus, {each[0].setting: each for each in answers}, rows)):
        print(table)
