"""Who runs in the next step, by example."""

from __future__ import annotations

import pytest
from support.scheduling import Device, sequence

from medport.errors import InputError, QuotaExceeded
from medport_local.engine.blocks import Lease
from medport_local.engine.scheduler import Batch, Scheduler, legal_end
from medport_local.engine.sequence import Sequence


def chunks_of(batches: list[Batch], id: int) -> list[tuple[int, int]]:
    """The prompt positions of each chunk of one sequence."""
    return [(each.start, each.end) for each in batches if each.phase == "prefill" and each.sequences[0].id == id]


def decoding(device: Device, scheduler: Scheduler, id: int = 999) -> Sequence:
    """A sequence that has its first token and goes on for long."""
    talker = sequence(id, 1, 5000)
    scheduler.add(talker)
    device.step(scheduler)
    assert talker.prefilled
    return talker


# Order of steps


def test_nothing_to_do_is_no_batch() -> None:
    assert Device().scheduler().next_batch() is None


def test_arrivals_are_prefilled_in_order_with_a_decode_between() -> None:
    device = Device()
    scheduler = device.scheduler(max_running=2)
    for id in (1, 2, 3):
        scheduler.add(sequence(id, max_tokens=4))

    assert device.steps(scheduler, 8) == [
        ("prefill", [1]),
        ("decode", [1]),
        ("prefill", [2]),
        ("decode", [1, 2]),
        ("decode", [1, 2]),
        ("prefill", [3]),
        ("decode", [2, 3]),
        ("decode", [3]),
    ]


def test_long_prompt_is_prefilled_in_chunks_from_its_start_to_its_end() -> None:
    device = Device()
    scheduler = device.scheduler()
    scheduler.add(sequence(1, 500, max_tokens=1))

    batches = device.drain(scheduler)

    edges = chunks_of(batches, 1)
    assert len(edges) == len(batches) > 2
    assert [start for start, _ in edges] == [0, *(end for _, end in edges[:-1])]
    assert edges[-1][1] == 500


def test_chunks_of_a_long_prompt_alternate_with_decode_steps() -> None:
    device = Device()
    scheduler = device.scheduler()
    decoding(device, scheduler)
    scheduler.add(sequence(1, 1000, max_tokens=1))

    phases = [phase for phase, _ in device.steps(scheduler, 10)]

    assert phases == ["decode", "prefill"] * 5


def test_chunk_beside_decoding_keeps_the_stall_budget_and_a_lonely_one_four_of_them() -> None:
    device = Device()
    alone, beside = device.scheduler(stall_ms=100), device.scheduler(stall_ms=100)
    alone.add(sequence(1, 8000, 1))
    decoding(device, beside)
    beside.add(sequence(2, 3000, 1))

    lonely = max(end - start for start, end in chunks_of(device.drain(alone), 1))
    accompanied = max(end - start for start, end in chunks_of(device.drain(beside), 2))

    # 10 ms and 1 ms a token: 90 and 390 tokens, and an eighth more at most.
    assert 75 <= accompanied <= 102
    assert 330 <= lonely <= 440


def test_short_prompt_does_not_wait_for_the_end_of_a_long_one() -> None:
    device = Device()
    scheduler = device.scheduler(stall_ms=20)
    long, short = sequence(1, 4000, 1), sequence(2, 20, 1)
    scheduler.add(long)
    device.steps(scheduler, 5)
    scheduler.add(short)

    batches = [device.step(scheduler) for _ in range(3)]

    assert [batch.sequences[0].id for batch in batches if batch] == [1, 2, 1]
    assert short.prefilled
    assert not long.prefilled


def test_prompts_take_turns_chunk_by_chunk() -> None:
    device = Device()
    scheduler = device.scheduler(stall_ms=20)
    for id in (1, 2, 3):
        scheduler.add(sequence(id, 2000, 1))

    assert [ids for _, ids in device.steps(scheduler, 9)] == [[1], [2], [3]] * 3


def test_prompts_that_are_computed_get_no_more_turns() -> None:
    device = Device()
    scheduler = device.scheduler(stall_ms=20)
    for id, prompt in ((1, 20), (2, 20), (3, 1000)):
        scheduler.add(sequence(id, prompt, 500))

    prefilled = [ids for phase, ids in device.steps(scheduler, 20) if phase == "prefill"]

    assert prefilled == [[1], [2], *[[3]] * 8]


def test_decode_step_is_not_owed_to_sequences_that_have_left() -> None:
    device = Device()
    scheduler = device.scheduler()
    for id in (1, 2):
        scheduler.add(sequence(id, max_tokens=1))

    assert device.steps(scheduler, 3) == [("prefill", [1]), ("prefill", [2])]


def test_sequence_whose_first_token_was_not_accepted_gets_its_logits_again() -> None:
    device = Device()
    scheduler = device.scheduler()
    one = sequence(1, 20)
    scheduler.add(one)
    batch = scheduler.next_batch()
    assert batch is not None
    device.run(scheduler, batch)

    again = scheduler.next_batch()

    assert again == Batch("prefill", (one,), 20, 20)


# Images


@pytest.mark.parametrize(
    ("start", "end", "legal"),
    [
        (0, 30, 30),  # before any image
        (0, 40, 40),  # at an image's start
        (0, 41, 40),  # inside: back to its start
        (0, 55, 40),
        (0, 56, 56),  # at its end
        (25, 50, 56),  # going back would leave 15 tokens: on to the end
        (24, 50, 40),  # … and here 16
        (30, 40, 40),
        (40, 50, 56),  # the image begins the chunk
        (56, 70, 70),
        (56, 105, 100),  # inside the last
        (90, 105, 116),
        (0, 117, 116),  # never past the end of the last image
        (0, 500, 116),
        (116, 500, 200),  # and after it to the prompt's end
        (200, 216, 200),
    ],
)
def test_chunk_ends_outside_images_and_at_the_end_of_the_last(start: int, end: int, legal: int) -> None:
    one = sequence(1, 200, images=((40, 56), (100, 116)))

    assert legal_end(one, start, end) == legal


def test_chunk_may_end_between_images_that_touch() -> None:
    one = sequence(1, 200, images=((40, 56), (56, 72)))

    assert legal_end(one, 0, 56) == 56
    assert legal_end(one, 0, 60) == 56
    assert legal_end(one, 56, 60) == 72


def test_image_at_the_prompts_end_ends_with_it() -> None:
    one = sequence(1, 56, images=((40, 56),))

    assert legal_end(one, 0, 100) == 56


def test_prompt_without_images_is_cut_anywhere() -> None:
    assert [legal_end(sequence(1, 50), 0, end) for end in (1, 49, 50, 51)] == [1, 49, 50, 50]


def test_image_is_encoded_before_the_chunk_that_holds_it_and_not_earlier() -> None:
    device = Device()
    scheduler = device.scheduler(stall_ms=10)
    scheduler.add(sequence(1, 120, 1, images=((40, 56), (80, 96))))

    batches = device.drain(scheduler)

    # Chunks are of 16 to 32 tokens here, and an image takes two steps.
    done: list[int | str] = ["encode" if each.phase == "encode" else each.end for each in batches]
    first, second = done.index(56), done.index(96)
    assert done[first - 2 : first] == ["encode"] * 2
    assert done[second - 2 : second] == ["encode"] * 2
    assert done.count("encode") == 4
    assert done.index("encode") > 0


def test_all_images_of_a_large_chunk_are_encoded_before_it() -> None:
    device = Device(cost=lambda batch: 0.001)
    scheduler = device.scheduler()
    scheduler.add(sequence(0, 1500, 1))
    device.drain(scheduler)
    scheduler.add(sequence(1, 1000, 1, images=tuple((at, at + 16) for at in range(100, 900, 200))))

    batches = device.drain(scheduler)

    assert [each.phase for each in batches] == ["encode"] * 8 + ["prefill"] * 2
    assert chunks_of(batches, 1) == [(0, 716), (716, 1000)]


def test_encoding_alternates_with_decode_steps_and_with_other_prompts() -> None:
    device = Device()
    scheduler = device.scheduler(stall_ms=30)
    decoding(device, scheduler)
    scheduler.add(sequence(1, 40, 1, images=((2, 18),)))
    scheduler.add(sequence(2, 300, 1))

    steps = device.steps(scheduler, 8)

    assert steps[::2] == [("decode", [999])] * 4
    assert steps[1::2] == [("encode", [1]), ("prefill", [2]), ("encode", [1]), ("prefill", [2])]


# What the prefix cache gives


def test_restored_tokens_are_not_computed_again() -> None:
    device = Device()
    scheduler = device.scheduler(restore=lambda each: 60)
    one = sequence(1, 80, 1)
    scheduler.add(one)

    assert chunks_of(device.drain(scheduler), 1) == [(60, 80)]


def test_prompt_that_is_restored_whole_gives_its_logits_at_once() -> None:
    device = Device()
    scheduler = device.scheduler(restore=lambda each: each.prompt_tokens)
    one = sequence(1, 80, 2, images=((10, 26),))
    scheduler.add(one)

    batches = device.drain(scheduler)

    assert batches == [Batch("prefill", (one,), 80, 80), Batch("decode", (one,))]


def test_empty_chunk_is_no_measurement_of_the_rate() -> None:
    device = Device()
    scheduler = device.scheduler(restore=lambda each: 80 if each.id == 2 else 0)
    scheduler.add(sequence(1, 80, 1))
    device.drain(scheduler)
    before = scheduler.prefill_tokens_per_s
    scheduler.add(sequence(2, 80, 1))
    device.drain(scheduler)

    assert scheduler.prefill_tokens_per_s == before > 0


def test_prefix_cache_is_asked_once_and_only_when_the_turn_has_come() -> None:
    asked: list[int] = []

    def restore(each: Sequence) -> int:
        asked.append(each.id)
        return 0

    device = Device()
    scheduler = device.scheduler(stall_ms=20, restore=restore)
    for id in (1, 2):
        scheduler.add(sequence(id, 200, 1))
    device.step(scheduler)

    assert asked == [1]

    device.drain(scheduler)
    assert asked == [1, 2]


def test_restored_images_are_not_encoded() -> None:
    device = Device()
    scheduler = device.scheduler(restore=lambda each: 56)
    one = sequence(1, 120, 1, images=((40, 56), (80, 96)))
    scheduler.add(one)

    phases = [each.phase for each in device.drain(scheduler)]

    assert phases.count("encode") == 2
    assert one.encoded == 2


@pytest.mark.parametrize("edge", [-1, 41, 55, 81])
def test_restored_edge_that_cannot_be_is_a_fault(edge: int) -> None:
    scheduler = Device().scheduler(restore=lambda each: edge)
    scheduler.add(sequence(1, 80, images=((40, 56),)))

    with pytest.raises(AssertionError):
        scheduler.next_batch()


# Places and memory


def test_running_sequences_own_memory_for_prompt_and_answer() -> None:
    device = Device()
    scheduler = device.scheduler(tokens=1024)
    first, second = sequence(1, 100, 100), sequence(2, 60, 4)
    scheduler.add(first)
    scheduler.add(second)
    device.step(scheduler)

    assert scheduler.lease(first) == Lease(slot=0, start=0, tokens=256)
    assert scheduler.lease(second) == Lease(slot=1, start=256, tokens=64)


def test_no_more_is_reserved_than_the_context_holds() -> None:
    device = Device()
    scheduler = device.scheduler(tokens=1024, max_context=512)
    one = sequence(1, 100, 100_000)
    scheduler.add(one)
    device.step(scheduler)

    assert scheduler.lease(one).tokens == 512


def test_no_more_run_than_there_are_places() -> None:
    device = Device()
    scheduler = device.scheduler(slots=3, max_running=2)
    for id in (1, 2, 3):
        scheduler.add(sequence(id, max_tokens=50))

    device.steps(scheduler, 5)

    assert (scheduler.running, scheduler.queued) == (2, 1)


def test_finished_sequence_makes_room_for_the_next() -> None:
    device = Device()
    scheduler = device.scheduler(max_running=1)
    first, second = sequence(1, max_tokens=9), sequence(2, max_tokens=9)
    scheduler.add(first)
    scheduler.add(second)
    device.steps(scheduler, 2)

    scheduler.finish(first)

    assert device.steps(scheduler, 2) == [("prefill", [2]), ("decode", [2])]


def test_sequence_that_failed_in_its_prefill_frees_its_memory() -> None:
    device = Device()
    scheduler = device.scheduler(tokens=128)
    for id in (1, 2):
        scheduler.add(sequence(id, 100, 28))
    failed = scheduler.next_batch()
    assert failed is not None

    scheduler.finish(failed.sequences[0])

    assert (scheduler.running, scheduler.queued) == (0, 1)
    assert [ids for _, ids in device.steps(scheduler, 1)] == [[2]]


def test_finishing_what_does_not_run_is_a_fault() -> None:
    scheduler = Device().scheduler()
    waiting = sequence(1)
    scheduler.add(waiting)

    with pytest.raises(KeyError):
        scheduler.finish(waiting)


def test_small_request_does_not_pass_a_large_one_that_waits_for_memory() -> None:
    device = Device()
    scheduler = device.scheduler(tokens=512)
    runs, large, small = sequence(1, 200, 50), sequence(2, 300, 50), sequence(3, 10, 2, tenant="other")
    scheduler.add(runs)
    device.step(scheduler)
    scheduler.add(large)
    device.step(scheduler)
    scheduler.add(small)
    device.steps(scheduler, 5)

    assert scheduler.queued == 2  # 256 tokens and three places are free; the large one needs 384

    scheduler.finish(runs)
    device.step(scheduler)
    assert scheduler.everyone() == [large, small]
    assert scheduler.queued == 0


def test_sequence_without_a_slot_waits_as_for_memory() -> None:
    device = Device()
    scheduler = device.scheduler(slots=1, max_running=4)
    first, second = sequence(1, max_tokens=20), sequence(2, max_tokens=20)
    scheduler.add(first)
    scheduler.add(second)
    device.steps(scheduler, 3)

    assert (scheduler.running, scheduler.queued) == (1, 1)

    scheduler.finish(first)
    device.step(scheduler)
    assert scheduler.everyone() == [second]


# What is refused


def test_request_that_can_never_fit_is_refused_with_the_room_there_is() -> None:
    scheduler = Device().scheduler(tokens=512)

    with pytest.raises(InputError) as refused:
        scheduler.add(sequence(1, 400, 200))

    error = refused.value
    assert error.field == "max_tokens"
    assert "400 tokens" in error.message
    assert "600 tokens" in error.message
    assert "512" in error.message
    assert error.remedy == "lower max_tokens to 112"
    scheduler.add(sequence(2, 400, 112))


@pytest.mark.parametrize("prompt", [512, 600])
def test_prompt_that_leaves_no_room_for_an_answer_must_be_shortened(prompt: int) -> None:
    scheduler = Device().scheduler(tokens=512)

    with pytest.raises(InputError) as refused:
        scheduler.add(sequence(1, prompt, 1))

    assert refused.value.remedy == "shorten the prompt, or send fewer images"


def test_refused_request_is_not_queued() -> None:
    scheduler = Device().scheduler(tokens=512)

    with pytest.raises(InputError):
        scheduler.add(sequence(1, 600, 1))

    assert (scheduler.queued, scheduler.everyone()) == (0, [])


def test_full_queue_refuses_and_says_how_long_to_wait() -> None:
    scheduler = Device().scheduler(max_running=1, max_queue=2)
    for id in (1, 2, 3):
        scheduler.add(sequence(id))

    with pytest.raises(QuotaExceeded) as refused:
        scheduler.add(sequence(4))

    assert refused.value.retry_after_s == 1  # nothing was measured
    assert "2 requests wait" in refused.value.message
    assert refused.value.remedy
    assert scheduler.queued == 3


def test_queue_is_as_long_when_its_head_waits_for_memory_and_not_for_a_place() -> None:
    device = Device()
    scheduler = device.scheduler(tokens=128, max_running=4, max_queue=2)
    scheduler.add(sequence(1, 64, 64))
    scheduler.add(sequence(2, 64, 64))
    device.step(scheduler)
    scheduler.add(sequence(3, 64, 64))

    with pytest.raises(QuotaExceeded):
        scheduler.add(sequence(4, 64, 64))

    device.drain(scheduler)
    for id in range(5, 11):  # four places and two in the queue
        scheduler.add(sequence(id, 64, 64))


def test_tenant_with_nothing_waiting_is_not_locked_out_by_another() -> None:
    device = Device()
    scheduler = device.scheduler(max_running=1, max_queue=2)
    for id in (1, 2, 3):
        scheduler.add(sequence(id, max_tokens=500, tenant="flood"))
    device.step(scheduler)

    with pytest.raises(QuotaExceeded):
        scheduler.add(sequence(4, tenant="flood"))
    scheduler.add(sequence(5, tenant="b"))
    with pytest.raises(QuotaExceeded):
        scheduler.add(sequence(6, tenant="b"))
    scheduler.add(sequence(7, tenant="c"))
    with pytest.raises(QuotaExceeded):  # twice as many as may wait
        scheduler.add(sequence(8, tenant="d"))


def test_request_that_would_wait_too_long_is_refused_until_the_queue_is_shorter() -> None:
    device = Device(cost=lambda batch: 0.1 * (batch.end - batch.start))  # 10 tokens/s
    scheduler = device.scheduler(max_wait_s=60, max_running=1)
    scheduler.add(sequence(1, 100, 1))
    device.drain(scheduler)
    scheduler.add(sequence(2, 700, 1))

    with pytest.raises(QuotaExceeded) as refused:
        scheduler.add(sequence(3, 10, 1))

    assert refused.value.retry_after_s == 10  # 70 s of prefill before it, 60 s allowed
    assert "about 70 s" in refused.value.message

    while scheduler.queued_prefill_tokens > 600:
        device.step(scheduler)
    scheduler.add(sequence(4, 10, 1))


def test_request_that_nobody_is_before_is_taken_however_slow_the_device() -> None:
    device = Device(cost=lambda batch: 100.0)
    scheduler = device.scheduler(max_wait_s=0)
    scheduler.add(sequence(1, 50, 2))
    device.drain(scheduler)

    scheduler.add(sequence(2, 5000, 2000))

    assert scheduler.queued == 1


def test_images_that_wait_to_be_encoded_count_as_waiting_time() -> None:
    device = Device(cost=lambda batch: 20.0 if batch.phase == "encode" else 0.001)  # an image takes 40 s
    scheduler = device.scheduler(max_wait_s=60)
    scheduler.add(sequence(1, 100, 1, images=((10, 26), (40, 56), (60, 76))))
    device.drain(scheduler)
    scheduler.add(sequence(2, 100, 1, images=((10, 26), (40, 56))))

    with pytest.raises(QuotaExceeded) as refused:
        scheduler.add(sequence(3, 10, 1))

    assert refused.value.retry_after_s == pytest.approx(20, abs=1)


def test_image_that_is_ready_no_longer_counts_as_waiting_time() -> None:
    device = Device(cost=lambda batch: 20.0 if batch.phase == "encode" else 0.001)
    scheduler = device.scheduler(max_wait_s=60)
    both = [sequence(id, 100, 1, images=((10, 26), (40, 56))) for id in (1, 2)]
    for each in both:
        scheduler.add(each)
    while sum(each.encoded for each in both) < 3:
        device.step(scheduler)

    scheduler.add(sequence(3, 10, 1))

    assert scheduler.queued == 1


def test_answers_before_it_count_as_waiting_time_when_all_places_are_taken() -> None:
    device = Device(cost=lambda batch: 1.0 if batch.phase == "decode" else 0.0)
    scheduler = device.scheduler(max_running=2, max_wait_s=25)
    scheduler.add(sequence(1, 16, 21))
    device.drain(scheduler)  # an answer takes 20 s: each of two places becomes free every 20 s, one every 10 s
    for id in (2, 3):
        scheduler.add(sequence(id, 16, 500))
    device.steps(scheduler, 3)
    scheduler.add(sequence(4, 16, 5))
    scheduler.add(sequence(5, 16, 5))

    with pytest.raises(QuotaExceeded) as refused:
        scheduler.add(sequence(6, 16, 5))

    assert "about 30 s" in refused.value.message
    assert refused.value.retry_after_s == 5


def test_free_places_do_not_shorten_the_wait_for_the_prompts_before() -> None:
    device = Device(cost=lambda batch: 100.0 if batch.phase == "decode" else 0.1 * (batch.end - batch.start))
    scheduler = device.scheduler(max_wait_s=60, max_running=8)
    scheduler.add(sequence(1, 100, 2))
    device.drain(scheduler)
    scheduler.add(sequence(2, 700, 2))

    with pytest.raises(QuotaExceeded) as refused:
        scheduler.add(sequence(3, 10, 2))

    assert refused.value.retry_after_s == 10


def test_waiting_time_of_a_new_tenant_is_not_that_of_the_flood_before_it() -> None:
    device = Device(cost=lambda batch: 0.1 * (batch.end - batch.start))
    scheduler = device.scheduler(max_wait_s=60, max_running=1)
    scheduler.add(sequence(1, 100, 1, tenant="flood"))
    device.drain(scheduler)
    scheduler.add(sequence(2, 300, 1, tenant="flood"))
    scheduler.add(sequence(3, 400, 1, tenant="flood"))

    with pytest.raises(QuotaExceeded):
        scheduler.add(sequence(4, 100, 1, tenant="flood"))
    scheduler.add(sequence(5, 100, 1, tenant="new"))


def test_wait_is_told_in_whole_seconds_and_a_minute_at_most() -> None:
    device = Device(cost=lambda batch: 1.0 * (batch.end - batch.start))
    scheduler = device.scheduler(max_wait_s=1, max_running=1)
    scheduler.add(sequence(1, 100, 1))
    device.drain(scheduler)
    scheduler.add(sequence(2, 4000, 1))

    with pytest.raises(QuotaExceeded) as refused:
        scheduler.add(sequence(3, 10, 1))

    assert refused.value.retry_after_s == 60


def test_full_queue_names_the_time_after_which_one_of_them_has_gone() -> None:
    device = Device(cost=lambda batch: 1.0 if batch.phase == "decode" else 0.0)
    scheduler = device.scheduler(max_running=1, max_queue=2)
    scheduler.add(sequence(1, 16, 8))
    device.drain(scheduler)  # an answer takes 7 s
    for id in (2, 3, 4):
        scheduler.add(sequence(id, 16, 500))
    device.step(scheduler)

    with pytest.raises(QuotaExceeded) as refused:
        scheduler.add(sequence(5, 16, 8))

    assert refused.value.retry_after_s == 11  # 3 answers of 7 s before the third of the queue, over 2 that wait


def test_request_is_taken_when_all_have_just_left_a_memory_that_was_short() -> None:
    device = Device()
    scheduler = device.scheduler(tokens=128)
    first, second = sequence(1, 100, 28), sequence(2, 100, 28)
    scheduler.add(first)
    scheduler.add(second)
    device.step(scheduler)
    scheduler.finish(first)

    scheduler.add(sequence(3, 100, 28))

    assert scheduler.queued == 2


def test_sequences_that_failed_teach_nothing_about_answers() -> None:
    device = Device(cost=lambda batch: 1.0)
    scheduler = device.scheduler(max_running=1, max_wait_s=5)
    failed = sequence(1, 16, 50)
    scheduler.add(failed)
    scheduler.next_batch()
    device.now += 1000
    scheduler.finish(failed)
    scheduler.add(sequence(2, 16, 50))
    scheduler.next_batch()

    scheduler.add(sequence(3, 16, 50))

    assert scheduler.queued == 1


# Who is taken out


def test_sweep_takes_out_the_cancelled_and_frees_their_memory() -> None:
    device = Device()
    scheduler = device.scheduler(max_running=1)
    running, waiting, other = sequence(1), sequence(2), sequence(3)
    for each in (running, waiting, other):
        scheduler.add(each)
    device.step(scheduler)
    running.cancelled = waiting.cancelled = True

    cancelled, expired = scheduler.sweep(device.now)

    assert sorted(each.id for each in cancelled) == [1, 2]
    assert expired == []
    assert (scheduler.running, scheduler.queued) == (0, 1)
    assert device.steps(scheduler, 1) == [("prefill", [3])]


def test_sweep_takes_out_whose_deadline_has_come() -> None:
    device = Device()
    scheduler = device.scheduler(max_running=2)
    for each in (
        sequence(1, deadline=2000.0),
        sequence(2, deadline=2000.5),
        sequence(3, deadline=2000.0),
        sequence(4, deadline=2000.5),
        sequence(5),
    ):
        scheduler.add(each)
    device.step(scheduler)

    assert scheduler.sweep(1999.9) == ([], [])
    cancelled, expired = scheduler.sweep(2000.0)

    assert cancelled == []
    assert sorted(each.id for each in expired) == [1, 3]
    assert sorted(each.id for each in scheduler.everyone()) == [2, 4, 5]
    assert (scheduler.running, scheduler.queued) == (1, 2)


def test_cancelled_sequence_whose_deadline_has_come_is_told_once() -> None:
    scheduler = Device().scheduler()
    one = sequence(1, deadline=5.0)
    scheduler.add(one)
    one.cancelled = True

    assert scheduler.sweep(6.0) == ([one], [])
    assert scheduler.sweep(6.0) == ([], [])


def test_sequence_cancelled_between_its_chunks_does_not_get_another() -> None:
    device = Device()
    scheduler = device.scheduler(stall_ms=20)
    one, two = sequence(1, 500), sequence(2, 500)
    for each in (one, two):
        scheduler.add(each)
    device.steps(scheduler, 4)
    one.cancelled = True

    assert {ids[0] for _, ids in device.steps(scheduler, 4)} == {2}


def test_large_request_that_gives_up_waiting_for_memory_lets_the_next_in() -> None:
    device = Device()
    scheduler = device.scheduler(tokens=512)
    scheduler.add(sequence(1, 200, 50))
    large, small = sequence(2, 300, 50), sequence(3, 10, 2)
    scheduler.add(large)
    scheduler.add(small)
    device.step(scheduler)
    large.cancelled = True

    device.step(scheduler)

    assert scheduler.queued == 0


# What is told and charged


def test_queued_prefill_tokens_are_those_of_waiting_and_running_prompts_to_be_computed() -> None:
    device = Device()
    scheduler = device.scheduler(max_running=1)
    scheduler.add(sequence(1, 100))
    scheduler.add(sequence(2, 70))

    assert scheduler.queued_prefill_tokens == 170

    device.step(scheduler)  # the first chunk is of 32 tokens
    assert scheduler.queued_prefill_tokens == 138

    device.drain(scheduler)
    assert scheduler.queued_prefill_tokens == 0


def test_prefill_rate_is_measured_over_chunks_alone() -> None:
    device = Device(cost=lambda batch: 100.0 if batch.phase != "prefill" else (batch.end - batch.start) / 50)
    scheduler = device.scheduler()
    scheduler.add(sequence(1, 300, 3, images=((10, 26),)))

    device.drain(scheduler)

    assert scheduler.prefill_tokens_per_s == pytest.approx(50)


def test_everyone_is_all_that_run_and_wait() -> None:
    device = Device()
    scheduler = device.scheduler(max_running=1)
    both = [sequence(1), sequence(2)]
    for each in both:
        scheduler.add(each)
    device.step(scheduler)

    assert scheduler.everyone() == both


def test_answers_and_images_are_charged_to_their_tenant_and_restored_tokens_are_not() -> None:
    # 1,000 prompt tokens a second; 3 s for an image are worth 3,000 of them.
    device = Device(cost=lambda batch: 1.5 if batch.phase == "encode" else 0.001 * (batch.end - batch.start))
    scheduler = device.scheduler(restore=lambda each: 40 if each.request.tenant == "cached" else 0)
    for tenant, images, answer in (
        ("plain", (), 1),
        ("talks", (), 11),
        ("cached", (), 1),
        ("shows", ((64, 80),), 1),
    ):
        scheduler.add(sequence(len(scheduler.everyone()), 100, answer, tenant=tenant, images=images))

    device.drain(scheduler)

    served = {tenant: scheduler._queue.served(tenant) for tenant in ("plain", "talks", "cached", "shows")}
    assert served == pytest.approx({"plain": 100, "talks": 120, "cached": 60, "shows": 3100})


def test_tenants_take_turns_for_places() -> None:
    device = Device()
    scheduler = device.scheduler(max_running=1)
    for id in range(1, 5):
        scheduler.add(sequence(id, 50, 1, tenant="flood"))
    for id in (5, 6):
        scheduler.add(sequence(id, 50, 1, tenant="b"))

    order = [ids[0] for phase, ids in device.steps(scheduler, 20) if phase == "prefill"]

    assert list(dict.fromkeys(order)) == [1, 5, 2, 6, 3, 4]
