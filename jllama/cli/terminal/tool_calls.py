"""Calls that a model makes in the chat: shown, run if the user wants it, answered in any case."""

from collections.abc import Callable, Sequence

from prompt_toolkit import PromptSession

from jllama.cli.terminal import wording
from jllama.cli.terminal.screen import Screen
from jllama.tools.definitions import Call
from jllama.tools.functions import Toolbox, failed

QUESTION = "run it? y(es), n(o), a(lways): "
ANSWERS = {"y": "yes", "yes": "yes", "n": "no", "no": "no", "a": "always", "always": "always"}


class ToolRunner:
    """Asks before a tool runs, until the user says always."""

    def __init__(
        self,
        toolbox: Toolbox,
        screen: Screen,
        *,
        unasked: bool = False,
        ask: Callable[[str], str] | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
          toolbox: the functions.
          screen: where calls and results show.
          unasked: run all of them without a question.
          ask: shows a question and gives what was typed; None: at the terminal.
        """
        self._toolbox, self._screen, self._unasked = toolbox, screen, unasked
        self._ask = ask or _typed
        self._always: set[str] = set()

    def results(self, calls: Sequence[Call]) -> list[str]:
        """What each call gave, as the model is to read it."""
        return [self._result(call) for call in calls]

    def _result(self, call: Call) -> str:
        self._screen.say(f"call: {wording.call(call)}")
        problem = self._toolbox.problem(call)
        if problem is not None:
            return self._shown(problem, well=False)
        if not self._may_run(call):
            return self._shown(failed("the user declined"), well=False)
        try:
            return self._shown(*self._toolbox.run(call))
        except KeyboardInterrupt:
            return self._shown(failed("the user stopped it"), well=False)

    def _shown(self, result: str, well: bool) -> str:
        self._screen.say(f"gave: {wording.shortened(result)}", "dim" if well else "error")
        return result

    def _may_run(self, call: Call) -> bool:
        """The user's word; Ctrl-C and Ctrl-D are no."""
        if self._unasked or call.name in self._always:
            return True
        answer = None
        while answer is None:
            try:
                answer = ANSWERS.get(self._ask(QUESTION).strip().lower())
            except (KeyboardInterrupt, EOFError):
                answer = "no"
        self._always |= {call.name} if answer == "always" else set()
        return answer != "no"


def _typed(question: str) -> str:
    session: PromptSession[str] = PromptSession()
    return session.prompt(question)
