"""What the scripts of this folder have in common: from the command line to tables."""

from collections.abc import Callable, Iterable, Sequence

from answering import answer_all, blind_answers
from corpus import Corpus, open_corpus, parser_of, write_result
from settings import Setting

from pipeline.evaluation.report import ResultRow, summarize

Rows = tuple[ResultRow, ...]


def run(
    description: str,
    name: str,
    *,
    settings: Callable[[Corpus], Sequence[Setting]],
    tables: Callable[[Corpus, Rows], Iterable[str]],
) -> None:
    """Ask all questions at all settings; print tables, and keep the rows as JSON under a name.

    The first setting is the one that the others are compared with.
    """
    given = parser_of(description).parse_args()
    corpus = open_corpus(given)
    answers = answer_all(corpus, settings(corpus), processes=given.processes)
    rows = summarize(corpus.questions, [*answers, blind_answers(corpus)], by=("kind", "level"))
    write_result(corpus, name, [row.to_json() for row in rows])
    num_videos = len({question.video_id for question in corpus.questions})
    print(f"### {corpus.name}: {len(corpus.questions)} questions about {num_videos} videos\n")
    for table in tables(corpus, rows):
        print(table)
