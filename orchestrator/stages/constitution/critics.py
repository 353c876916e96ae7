"""Critics: each makes one revision per draft, or says why there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.config.constitution import Critic
from orchestrator.planning.worker_specs import chat_spec
from orchestrator.session.session import Session
from orchestrator.stages.asked_engines import ask_engines, model_of, text_of
from orchestrator.stages.constitution.drafts import Draft, Revision
from workers.data.rows.asked import plain_text
from workers.judging.critiques import critique_question, revision_question
from workers.judging.interview import Asked, EndpointSpec, interview
from workers.judging.principles import Principle
from workers.judging.questions import Texts
from workers.records.generation import Sampling
from workers.scorers.http_answer import Answer, content_of
from workers.scorers.http_calls import FailedError
from workers.scorers.judge_cache import VerdictCache, question_key
from workers.user_functions.calls import Patience
from workers.user_functions.reviser_function import Draft as Asking
from workers.user_functions.reviser_function import started_reviser

Made = Revision | str
_BATCH = 64  # drafts per call of a function or a chat model: what one deadline is for
_TOLD = 8  # calls between two notes on progress
_FORMAT = "critique 1"  # version of what is kept; changing it invalidates kept answers
CUT = "a critique or revision that was cut"
EMPTY = "an empty critique or revision"
_WHERE = "constitution.endpoint"


def revise(
    session: Session, stage: str, number: int, drafts: Sequence[Draft], drawn: Sequence[Principle]
) -> list[Made]:
    """One revision per draft, or why there is none.

    Args:
        session: The run.
        stage: Names the seeds.
        number: Of the round, from 1.
        drafts: What is revised.
        drawn: The principle for each.
    """
    if session.config.constitution.critic is Critic.function:
        return _by_function(session, stage, drafts, drawn)
    remote = session.config.constitution.critic is Critic.endpoint
    ask = _endpoint(session, stage) if remote else _engines(session, stage, number)
    prompts = [plain_text(draft.prompt.context) for draft in drafts]
    each = list(zip(drawn, prompts, drafts, strict=True))
    said = ask("critique", [critique_question(p, prompt, d.text) for p, prompt, d in each])
    left = [n for n, text in enumerate(said) if not isinstance(text, _Failed)]
    questions = [
        revision_question(drawn[n], prompts[n], drafts[n].text, str(said[n])) for n in left
    ]
    made: list[Made] = [str(text) for text in said]
    for n, text in zip(left, ask("revision", questions), strict=True):
        failed = isinstance(text, _Failed)
        made[n] = str(text) if failed else Revision(drawn[n].name, str(said[n]), text)
    return made


class _Failed(str):
    """The reason why a question has no answer."""

    __slots__ = ()


# What is asked for, and the questions -> their answers.
_Ask = Callable[[str, Sequence[str]], list[str]]


def _by_function(
    session: Session, stage: str, drafts: Sequence[Draft], drawn: Sequence[Principle]
) -> list[Made]:
    reward, path = session.config.reward, session.config.constitution.function
    patience = Patience(reward.function_seconds, reward.function_retries)
    made: list[Made] = []
    with started_reviser(path, str(Path.cwd())) as function:
        for first in range(0, len(drafts), _BATCH):
            session.stop_if_asked()
            some = slice(first, first + _BATCH)
            asked = [
                Asking(draft.prompt.asked, draft.text, principle.revision)
                for draft, principle in zip(drafts[some], drawn[some], strict=True)
            ]
            replies = function.ask(asked, patience)
            made += [
                reply.reason or Revision(principle.name, "", reply.text)
                for reply, principle in zip(replies, drawn[some], strict=True)
            ]
            _tell(session, stage, "revised", len(made), len(drafts))
    return made


def _tell(session: Session, stage: str, done: str, count: int, whole: int) -> None:
    """Say now and then how many answers are done."""
    if count == whole or count % (_TOLD * _BATCH) == 0:
        session.live.note(f"{stage}: {count:,} of {whole:,} answers {done}")


def _engines(session: Session, stage: str, number: int) -> _Ask:
    settings = session.config.constitution
    own = settings.critic is Critic.policy
    folder = session.need(settings.model) if own else settings.checkpoint
    where = f"constitution.{'model' if own else 'checkpoint'}"
    model = model_of(folder, settings.question_tokens, settings.critique_tokens, where)
    sampling = Sampling(settings.critic_temperature, settings.critique_tokens)

    def ask(what: str, questions: Sequence[str]) -> list[str]:
        tokens = [model.tokens(question) for question in questions]
        said = ask_engines(session, model, tokens, sampling, stage, what, number)
        texts = [_Failed(s) if isinstance(s, str) else text_of(model, s) for s in said]
        return [text or _Failed(CUT) for text in texts]

    return ask


def _endpoint(session: Session, stage: str) -> _Ask:
    settings = session.config.constitution.endpoint

    def ask(what: str, questions: Sequence[str]) -> list[str]:
        spec = chat_spec(settings, _WHERE, "critic")
        cache = VerdictCache(session.folder.answers_of(stage), Texts(), _WHERE)
        found: list[str] = []
        try:
            for first in range(0, len(questions), _BATCH):
                session.stop_if_asked()
                found += _interviewed(spec, cache, questions[first : first + _BATCH])
                _tell(session, stage, f"have a {what}", len(found), len(questions))
        finally:
            cache.close()
        return found

    return ask


def _interviewed(spec: EndpointSpec, cache: VerdictCache, questions: Sequence[str]) -> list[str]:
    address = spec.url.rstrip("/")
    keys = [question_key(_FORMAT, address, spec.model, spec.request, q) for q in questions]
    uses: dict[str, list[int]] = {}
    for n, key in enumerate(keys):
        uses.setdefault(key, []).append(n)
    unknown = {k: q for k, q in zip(keys, questions, strict=True) if cache.get(k) is None}
    asked = Asked(unknown, uses, len(questions), _text, "answers", "text")
    why = interview(spec, cache, asked)
    return [cache.get(key) or _Failed(why.get(key, "no answer")) for key in keys]


def _text(answer: Answer) -> str:
    text = (content_of(answer) or "").strip()
    if not text:
        raise FailedError(EMPTY)
    if _was_cut(answer):
        raise FailedError(CUT)
    return text


def _was_cut(answer: Answer) -> bool:
    try:
        return answer.json()["choices"][0].get("finish_reason") == "length"
    except (ValueError, LookupError, TypeError, AttributeError):
        return False
