"""How answers leave: in pieces that add up, to threads and event loops, whatever becomes of the reader."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import pytest

from engine.reference import assert_greedy, greedy_reference, learned_prefix, make_request, text_of, tokens_of
from engine.test_engine import manual_engine, run_until_idle
from foreword.core import SamplingParams
from foreword.engine.engine import Engine
from foreword.engine.protocol import Chunk, Request
from foreword.engine.stream import ChunkStream
from foreword.errors import EngineError
from tiny_models import tiny_model


@pytest.fixture
def engine():
    with Engine(tiny_model("llama"), cache_bytes=4 << 20) as engine:
        yield engine
        engine.cache.check()


def eventually(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.005)


def idle(engine: Engine) -> bool:
    found = engine.statistics()
    return found["running"] == found["waiting"] == 0 and found["free_pages"] == found["pages"]


def spoken(engine: Engine, text: str, monkeypatch, then: int | None = None, **sampling) -> list[Chunk]:
    """The chunks of an answer whose tokens spell ``text``: the model runs, its choices are replaced."""
    tokens = iter([*engine.tokenizer.encode(text), *([] if then is None else [then])])
    monkeypatch.setattr("foreword.engine.engine.sample_batch", lambda logits, samplers: [next(tokens)])
    stream = engine.submit(Request((5,), sampling=SamplingParams(**{"max_tokens": 100, **sampling})))
    for _ in range(len(text.encode()) + (then is not None)):
        engine.step()
    engine.cache.check()
    stream.cancel()
    engine.step()
    return list(stream)


def test_chunks_add_up_to_the_whole_text():
    engine = manual_engine("llama")
    stream = engine.submit(make_request(6, max_tokens=40))
    run_until_idle(engine)
    chunks = list(stream)
    whole = engine.tokenizer.decode(tokens_of(chunks), skip_special_tokens=True)
    assert text_of(chunks) == whole
    assert len(chunks) == 40
    assert chunks[-1].finish_reason == "length"


@pytest.mark.parametrize("text", ["退款需要几天?", "🎉👍🏽 fine 🇨🇳", "naïve café, ñandú"])
def test_characters_of_many_bytes_are_never_split(text, monkeypatch):
    chunks = spoken(manual_engine("llama"), text, monkeypatch)
    assert text_of(chunks) == text
    assert not any("\ufffd" in chunk.text for chunk in chunks)
    assert len(chunks) == len(text.encode()) + 1  # and the cancelling one


def test_a_stop_text_across_tokens_ends_the_answer_and_is_not_part_of_it(monkeypatch):
    engine = manual_engine("llama")
    chunks = spoken(engine, "yes, no\nLabel: 好\n", monkeypatch, stop=("\nLabel", "unseen"))
    assert (text_of(chunks), chunks[-1].finish_reason) == ("yes, no", "stop")
    assert not any("\n" in chunk.text for chunk in chunks)


def test_the_beginning_of_a_stop_text_is_emitted_at_the_end(monkeypatch):
    chunks = spoken(manual_engine("llama"), "a\nLab", monkeypatch, stop=("\nLabel",), max_tokens=5)
    assert (text_of(chunks), chunks[-1].finish_reason) == ("a\nLab", "length")


def test_an_end_token_is_reported_but_not_text(monkeypatch):
    engine = manual_engine("llama")
    end = engine.tokenizer.eos_token_id
    chunks = spoken(engine, "fine", monkeypatch, then=end)
    assert (text_of(chunks), chunks[-1].finish_reason, tokens_of(chunks)[-1]) == ("fine", "stop", end)


def test_a_stop_token_is_not_text_either(monkeypatch):
    engine = manual_engine("llama")
    (dot,) = engine.tokenizer.encode(".")
    chunks = spoken(engine, "fine.", monkeypatch, stop_token_ids=(dot,))
    assert (text_of(chunks), chunks[-1].finish_reason, tokens_of(chunks)[-1]) == ("fine", "stop", dot)


def test_special_tokens_are_not_text_when_the_answer_goes_on(monkeypatch):
    engine = manual_engine("llama")
    end = engine.tokenizer.eos_token_id
    chunks = spoken(engine, "fine", monkeypatch, then=end, ignore_eos=True)
    assert (text_of(chunks), chunks[-1].finish_reason) == ("fine", "cancelled")


def test_a_stream_read_to_its_end_is_over(engine):
    stream = engine.submit(make_request(3))
    assert len(list(stream)) == 8
    assert list(stream) == []


def test_reading_in_an_event_loop(engine):
    async def read(seed: int) -> list[Chunk]:
        return [chunk async for chunk in engine.submit(make_request(4, seed, learned_prefix("llama", 5)))]

    async def main() -> list[list[Chunk]]:
        return await asyncio.gather(*(read(seed) for seed in range(8)))

    for seed, chunks in enumerate(asyncio.run(main())):
        assert tokens_of(chunks) == greedy_reference("llama", make_request(4, seed, learned_prefix("llama", 5)))


def test_an_event_loop_that_closes_does_not_hurt_the_engine(engine):
    streams = []

    async def main() -> None:
        stream = engine.submit(make_request(4, max_tokens=200))
        streams.append(stream)
        reader = aiter(stream)
        streams.append(reader)  # so that nothing closes it in order
        await anext(reader)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    eventually(lambda: idle(engine))
    assert streams[0].cancelled
    assert_greedy("llama", make_request(3), tokens_of(engine.submit(make_request(3))))


def test_a_reader_that_leaves_frees_its_pages(engine):
    async def main() -> None:
        async for _ in engine.submit(make_request(4, max_tokens=200)):
            break

    asyncio.run(main())
    for _ in engine.submit(make_request(4, max_tokens=200)):
        break
    gc.collect()
    engine._thread.wake()
    eventually(lambda: idle(engine))
    assert engine.statistics()["cancelled"] == 2


def test_a_task_that_is_cancelled_frees_its_pages(engine):
    async def read() -> None:
        async for _ in engine.submit(make_request(4, max_tokens=200)):
            pass

    async def main() -> None:
        task = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    gc.collect()
    eventually(lambda: idle(engine))
    assert engine.statistics()["cancelled"] == 1


def test_cancelling_from_another_thread(engine):
    stream = engine.submit(make_request(4, max_tokens=200))
    threading.Timer(0.05, stream.cancel).start()
    chunks = list(stream)
    assert chunks[-1].finish_reason == "cancelled"
    assert_greedy("llama", stream.request, tokens_of(chunks))
    eventually(lambda: idle(engine))


def test_thirty_two_threads_at_once(engine):
    prefixes = [None, *(learned_prefix("llama", length, length) for length in (2, 11, 30))]
    requests = [make_request(1 + seed % 7, seed, prefixes[seed % 4]) for seed in range(32)]
    answers: dict[int, list[int]] = {}
    gate = threading.Barrier(32)

    def read(index: int) -> None:
        gate.wait()
        stream = engine.submit(requests[index])
        if index % 8 == 7:
            stream.cancel()
        answers[index] = tokens_of(stream)

    threads = [threading.Thread(target=read, args=(index,)) for index in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 32
    for index, answer in answers.items():
        assert len(answer) == 8 or index % 8 == 7
        if answer:
            assert_greedy("llama", requests[index], answer)
    eventually(lambda: idle(engine))


def test_generate_answers_in_the_order_of_the_requests(engine):
    requests = [make_request(2, seed, max_tokens=1 + 3 * (seed % 2)) for seed in range(4)]
    answers = [tokens_of(chunks) for chunks in engine.generate(requests)]
    assert [len(answer) for answer in answers] == [1, 4, 1, 4]
    for request, answer in zip(requests, answers, strict=True):
        assert_greedy("llama", request, answer)


def test_closing_ends_every_stream():
    engine = Engine(tiny_model("llama"), max_batch=2)
    streams = [engine.submit(make_request(4, seed, max_tokens=200)) for seed in range(5)]
    next(iter(streams[0]))
    engine.close()
    assert [list(stream)[-1].finish_reason for stream in streams] == ["cancelled"] * 5
    assert engine.cache.num_free_pages == engine.cache.num_pages
    with pytest.raises(EngineError, match="closed"):
        engine.submit(make_request(2))
    engine.close()


def test_a_stream_put_before_it_is_read():
    stream = ChunkStream(make_request(1), lambda: None)
    stream.put(Chunk("a", (1,)))
    stream.put(Chunk("b", (2,), "stop"))

    async def read() -> str:
        return "".join([chunk.text async for chunk in stream])

    assert asyncio.run(read()) == "ab"
