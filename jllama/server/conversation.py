"""A conversation of a request as the model's prompt."""

from jllama.server.protocol.messages import encode_messages, is_begun, read_messages
from jllama.server.protocol.tokens import Templated
from jllama.server.reasoning import Split
from jllama.server.service import Service

TAIL = 16  # tokens: the words that open an answer's thoughts are fewer


def encoded(service: Service, given: Templated) -> tuple[list[int], list[int]]:
    """Token ids of what asks for an answer, and of the answer's beginning, if the last message is that.

    Raises:
      ApiError: 400: the messages can't be used.
    """
    messages = read_messages(given.messages)
    begun = is_begun(messages, given.continue_final_message, given.add_generation_prompt)
    asks = given.add_generation_prompt is not False
    variables = given.chat_template_kwargs
    return encode_messages(service.tokenizer, messages, begun=begun, asks=asks, variables=variables)


def split_for(service: Service, asking: list[int], beginning: list[int]) -> Split | None:
    """Takes an answer's thoughts apart, where the model has them."""
    if not service.has_thoughts:
        return None
    before = service.tokenizer.decode(asking[-TAIL:], skip_special=False)
    split = Split(before)
    split.push(service.tokenizer.decode(beginning))
    return split
