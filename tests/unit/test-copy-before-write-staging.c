/* SPDX-License-Identifier: MIT */
/*
 * copy-before-write with a staging buffer: what the guest waits for, what the view sees, and
 * what becomes of staged bytes when the target is slow or fails, in drained sections and at the
 * end. The numbers are those of the invariants in block/filters/copy-before-write.c.
 */
#include "io-harness.h"
#include "qapi/event.h"
#include "util/size.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

#define CLUSTER 65536
#define SIZE    (16 * CLUSTER + 512)
#define NODES   "{'driver':'null-co','node-name':'%s','size':1049088,'discard':'unmap'}" /* SIZE */
#define CBW                                                                                        \
    "{'driver':'copy-before-write','node-name':'cbw','file':'disk','target':'target',"             \
    "'discard':'unmap'%s}"
#define VIEW    "{'driver':'snapshot-access','node-name':'view','file':'cbw','discard':'unmap'}"
#define RW      (PERM_CONSISTENT_READ | PERM_WRITE)
#define ROOM(n) ",'min-cluster-size':65536,'staging-size':" #n

#define ROOM_FOR_TWO ROOM(131072)
#define ROOM_FOR_ALL ROOM(2097152)

typedef struct Fixture {
    BlockNode *disk_node, *target_node, *cbw;
    MemoryDisk *disk, *target;
    BlockBackend *guest, *view;
} Fixture;

static GString *events;

static void note_event(const char *name, json_t *message)
{
    json_t *data = json_object_get(message, "data");

    g_string_append_printf(events, "%s %s: %s", name,
                           json_string_value(json_object_get(data, "node-name")),
                           json_string_value(json_object_get(data, "reason")));
}

/* Its cluster's number plus 1 everywhere. */
static void fill_with_numbers(uint8_t *data)
{
    for (int64_t offset = 0; offset < SIZE; offset += CLUSTER) {
        memset(data + offset, (int)(offset / CLUSTER + 1), MIN(CLUSTER, SIZE - offset));
    }
}

/* A frozen disk that held its cluster's number plus 1 everywhere; the target takes no write. */
static void fixture_begin(Fixture *f, const char *options)
{
    f->disk_node = add_node(NODES, "disk");
    f->target_node = add_node(NODES, "target");
    f->disk = memory_disk(f->disk_node);
    f->target = memory_disk(f->target_node);
    fill_with_numbers(f->disk->data);
    memset(f->target->data, 0xee, SIZE);
    f->cbw = add_node(CBW, options);
    add_node(VIEW);
    f->guest = open_user(f->cbw, RW);
    f->view = open_user(node_find("view"), RW);
    memory_disk_hold(f->target, true, false);
    g_string_truncate(events, 0);
}

static bool release_is_due;

static void release_target(void *opaque)
{
    memory_disk_hold(opaque, false, false);
    release_is_due = false;
}

/* The next time that the main loop is polled. */
static void release_soon(Fixture *f)
{
    release_is_due = true;
    event_loop_call(event_loop_main(), release_target, f->target);
}

static void fixture_done(Fixture *f)
{
    release_soon(f);
    backend_free(f->guest);
    backend_free(f->view);
    delete_node("view");
    delete_node("cbw");
    while (release_is_due) {
        event_loop_poll(event_loop_main(), true);
    }
    delete_node("disk");
    delete_node("target");
}

static void assert_frozen(Fixture *f, int64_t offset, int64_t bytes)
{
    assert_numbers(f->view, offset, bytes, CLUSTER);
}

static int view_read_error(Fixture *f, int64_t offset)
{
    uint8_t byte;

    return do_read(f->view, offset, 1, &byte);
}

/* --- the state, as queries tell it --- */

static BlockDeviceInfo *query(Fixture *f, ImageInfoSpecificCbw **ret)
{
    BlockDeviceInfo *info = node_info(f->cbw, true, NULL);

    g_assert_cmpint(info->image->format_specific->type, ==,
                    IMAGE_INFO_SPECIFIC_KIND_COPY_BEFORE_WRITE);
    *ret = info->image->format_specific->u.copy_before_write.data;
    return info;
}

static int64_t staged(Fixture *f)
{
    ImageInfoSpecificCbw *state;
    BlockDeviceInfo *info = query(f, &state);
    int64_t bytes = state->staged_bytes;

    block_device_info_free(info);
    return bytes;
}

static void assert_state(Fixture *f, int64_t copied, int64_t still_staged, const char *reason)
{
    ImageInfoSpecificCbw *state;
    BlockDeviceInfo *info = query(f, &state);

    g_assert_cmpint(state->copied_bytes, ==, copied);
    g_assert_cmpint(state->pending_bytes, ==, SIZE - copied);
    g_assert_cmpint(state->staged_bytes, ==, still_staged);
    g_assert_cmpint(state->broken, ==, reason != NULL);
    g_assert_cmpstr(state->reason, ==, reason);
    block_device_info_free(info);
}

/* The last writer notifies the main loop. */
static void wait_until_written(Fixture *f)
{
    while (staged(f)) {
        event_loop_poll(event_loop_main(), true);
    }
}

static void wait_until_broken(Fixture *f)
{
    while (events->len == 0) {
        event_loop_poll(event_loop_main(), true);
    }
}

/* --- in good times --- */

static void test_a_write_waits_for_memory_alone(void)
{
    BlockStatus status;
    Fixture f;

    fixture_begin(&f, ROOM_FOR_ALL);
    g_assert_cmpint(do_fill(f.guest, CLUSTER - 1, 2, 0x99), ==, 0);
    g_assert_cmpint(do_fill(f.guest, SIZE - 1, 1, 0x99), ==, 0);
    g_assert_cmpint(f.disk->data[CLUSTER], ==, 0x99);
    g_assert_cmpint(f.target->data[CLUSTER], ==, 0xee);
    assert_frozen(&f, 0, SIZE);
    assert_frozen(&f, 1000, 70000);
    assert_state(&f, 2 * CLUSTER + 512, 3 * CLUSTER, NULL);
    g_assert_cmpint(do_status(f.view, 10, SIZE - 10, &status), ==, 0);
    g_assert_cmpint(status.bytes, ==, 2 * CLUSTER - 10);
    g_assert_true(status.flags & BLOCK_STATUS_DATA);
    memory_disk_hold(f.target, false, false);
    wait_until_written(&f);
    assert_state(&f, 2 * CLUSTER + 512, 0, NULL);
    g_assert_cmpint(f.target->data[0], ==, 1);
    g_assert_cmpint(f.target->data[SIZE - 1], ==, 17);
    assert_frozen(&f, 0, SIZE);
    fixture_done(&f);
}

static void test_neighbours_are_written_together(void)
{
    Fixture f;

    fixture_begin(&f, ROOM_FOR_ALL);
    do_fill(f.guest, 0, 1, 0x99);
    memory_disk_wait_held(f.target, 1);
    for (int c = 9; c > 1; c--) {
        do_fill(f.guest, (int64_t)c * CLUSTER, 1, 0x99);
    }
    memory_disk_hold(f.target, false, false);
    wait_until_written(&f);
    /* How many at a time depends on how long the target took; the second takes two at least. */
    g_assert_cmpint(atomic_load(&f.target->writes), <, 9);
    assert_frozen(&f, 0, SIZE);
    fixture_done(&f);
}

static void test_small_units(void)
{
    Fixture f;

    fixture_begin(&f, ",'staging-size':65536");
    for (int c = 0; c < 16; c++) {
        g_assert_cmpint(do_fill(f.guest, (int64_t)c * CLUSTER + 5000, 100, 0x99), ==, 0);
    }
    assert_state(&f, CLUSTER, CLUSTER, NULL);
    assert_frozen(&f, 0, SIZE);
    assert_frozen(&f, 4097, 2 * CLUSTER);
    memory_disk_hold(f.target, false, false);
    wait_until_written(&f);
    assert_frozen(&f, 0, SIZE);
    fixture_done(&f);
}

static void test_zeroes_need_no_memory(void)
{
    BlockStatus status;
    Fixture f;

    fixture_begin(&f, ROOM_FOR_ALL);
    f.disk->tells_zeroes = true;
    memset(f.disk->data, 0, 2 * CLUSTER);
    do_fill(f.guest, 0, 3 * CLUSTER, 0x99);
    g_assert_cmpint(do_status(f.view, 0, SIZE, &status), ==, 0);
    g_assert_cmpint(status.bytes, ==, 2 * CLUSTER);
    g_assert_true(status.flags & BLOCK_STATUS_ZERO);
    assert_filled(f.view, 0, 2 * CLUSTER, 0);
    assert_frozen(&f, 2 * CLUSTER, CLUSTER);
    memory_disk_hold(f.target, false, false);
    wait_until_written(&f);
    g_assert_cmpint(atomic_load(&f.target->zeroes), ==, 1);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 1);
    assert_filled(f.view, 0, 2 * CLUSTER, 0);
    fixture_done(&f);
}

/* Invariant 6. */
static void test_what_is_discarded_is_dropped(void)
{
    Fixture f;

    fixture_begin(&f, ROOM_FOR_ALL);
    do_fill(f.guest, 0, 1, 0x99);
    memory_disk_wait_held(f.target, 1);
    do_fill(f.guest, 2 * CLUSTER, 3 * CLUSTER, 0x99);
    release_soon(&f);
    g_assert_cmpint(do_discard(f.view, CLUSTER, 3 * CLUSTER), ==, 0);
    g_assert_cmpint(view_read_error(&f, 2 * CLUSTER), ==, -EACCES);
    g_assert_cmpint(do_discard(f.view, 0, CLUSTER), ==, 0); /* waits for what is on its way */
    g_assert_cmpint(f.target->data[0], ==, 0xdd);
    wait_until_written(&f);
    assert_frozen(&f, 4 * CLUSTER, 2 * CLUSTER);
    fixture_done(&f);
}

/* --- full --- */

static void test_a_full_buffer_makes_the_guest_wait(void)
{
    AsyncWrite write, other;
    Fixture f;

    fixture_begin(&f, ROOM_FOR_TWO);
    do_fill(f.guest, 0, 2 * CLUSTER, 0x99);
    start_write(&write, event_loop_main(), f.guest, 4 * CLUSTER, 512, 0x99);
    start_write(&other, event_loop_main(), f.guest, CLUSTER, 512, 0x99);
    g_assert_cmpint(finish_write(&other), ==, 0); /* copied long ago */
    memory_disk_wait_held(f.target, 1);
    g_assert_false(atomic_load(&write.done));
    assert_frozen(&f, 0, SIZE);
    memory_disk_hold(f.target, false, false);
    g_assert_cmpint(finish_write(&write), ==, 0);
    assert_frozen(&f, 0, SIZE);
    g_assert_cmpint(do_fill(f.guest, 0, SIZE, 0x77), ==, 0); /* larger than the buffer */
    assert_frozen(&f, 0, SIZE);
    wait_until_written(&f);
    assert_frozen(&f, 0, SIZE);
    fixture_done(&f);
}

static void test_waiting_for_room_has_its_time_limit(void)
{
    Fixture f;

    fixture_begin(&f, ROOM_FOR_TWO ",'cbw-timeout':1");
    do_fill(f.guest, 0, 2 * CLUSTER, 0x99);
    g_assert_cmpint(do_fill(f.guest, 4 * CLUSTER, 512, 0x99), ==, -ETIMEDOUT);
    g_assert_cmpint(f.disk->data[4 * CLUSTER], ==, 5);
    assert_frozen(&f, 0, SIZE);
    memory_disk_hold(f.target, false, false);
    g_assert_cmpint(do_fill(f.guest, 4 * CLUSTER, 512, 0x99), ==, 0);
    assert_frozen(&f, 0, SIZE);
    g_assert_cmpstr(events->str, ==, "");
    fixture_done(&f);
}

static void test_the_time_limit_breaks_the_view(void)
{
    static const char why[] = "Copying old bytes took longer than 1 s";
    Fixture f;

    fixture_begin(&f, ROOM_FOR_TWO ",'cbw-timeout':1,'on-cbw-error':'break-snapshot'");
    do_fill(f.guest, 0, 2 * CLUSTER, 0x99);
    g_assert_cmpint(do_fill(f.guest, 4 * CLUSTER, 512, 0x99), ==, 0);
    g_assert_cmpint(f.disk->data[4 * CLUSTER], ==, 0x99);
    g_assert_cmpint(view_read_error(&f, 0), ==, -EACCES);
    wait_until_broken(&f);
    g_assert_cmpstr(events->str, ==,
                    "BLOCK_VIEW_BROKEN cbw: Copying old bytes took longer than 1 s");
    assert_state(&f, 2 * CLUSTER, 2 * CLUSTER, why);
    fixture_done(&f);
}

/* --- failure: invariants 5 and 7 --- */

static void target_fails(const char *options)
{
    Fixture f;

    fixture_begin(&f, options);
    g_assert_cmpint(do_fill(f.guest, 0, CLUSTER, 0x99), ==, 0);
    memory_disk_wait_held(f.target, 1);
    g_assert_cmpint(do_fill(f.guest, 5 * CLUSTER, CLUSTER, 0x99), ==, 0);
    assert_frozen(&f, 0, SIZE);
    atomic_store(&f.target->fail_writes, ENOSPC);
    memory_disk_hold(f.target, false, false);
    wait_until_broken(&f);
    g_assert_cmpstr(events->str, ==,
                    "BLOCK_VIEW_BROKEN cbw: Writing staged bytes failed: No space left on device");
    wait_until_written(&f); /* dropped, rather */
    assert_state(&f, 2 * CLUSTER, 0, "Writing staged bytes failed: No space left on device");
    g_assert_cmpint(view_read_error(&f, 0), ==, -EACCES);
    g_assert_cmpint(view_read_error(&f, 9 * CLUSTER), ==, -EACCES);
    g_assert_cmpint(do_fill(f.guest, 0, SIZE, 0x77), ==, 0);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 1);
    fixture_done(&f);
}

static void test_a_failing_target_breaks_the_view(void)
{
    target_fails(ROOM_FOR_ALL ",'on-cbw-error':'break-snapshot'");
    target_fails(ROOM_FOR_ALL); /* the guest's writes were acknowledged */
}

static void test_who_waits_for_room_goes_on_when_the_view_breaks(void)
{
    EventLoop *loop = event_loop_new("test", NULL);
    AsyncWrite write;
    Fixture f;

    fixture_begin(&f, ROOM_FOR_TWO);
    do_fill(f.guest, 0, 2 * CLUSTER, 0x99);
    memory_disk_wait_held(f.target, 1);
    start_write(&write, loop, f.guest, 4 * CLUSTER, 512, 0x99);
    atomic_store(&f.target->fail_writes, EIO);
    memory_disk_hold(f.target, false, false);
    g_assert_cmpint(finish_write(&write), ==, 0);
    g_assert_cmpint(f.disk->data[4 * CLUSTER], ==, 0x99);
    g_assert_cmpint(view_read_error(&f, 4 * CLUSTER), ==, -EACCES);
    fixture_done(&f);
    event_loop_free(loop);
}

/* Nobody would write it any more, and others would wait for its room. */
static void test_what_is_read_as_the_view_breaks_does_not_stay(void)
{
    EventLoop *loop = event_loop_new("test", NULL);
    AsyncWrite write;
    Fixture f;

    fixture_begin(&f, ROOM_FOR_ALL);
    do_fill(f.guest, 0, CLUSTER, 0x99);
    memory_disk_wait_held(f.target, 1);
    memory_disk_hold(f.disk, false, true);
    start_write(&write, loop, f.guest, 4 * CLUSTER, CLUSTER, 0x99);
    memory_disk_wait_held(f.disk, 1);
    atomic_store(&f.target->fail_writes, EIO);
    memory_disk_hold(f.target, false, false);
    wait_until_written(&f);
    memory_disk_hold(f.disk, false, false);
    g_assert_cmpint(finish_write(&write), ==, 0);
    assert_state(&f, 2 * CLUSTER, 0, "Writing staged bytes failed: Input/output error");
    fixture_done(&f);
    event_loop_free(loop);
}

static void test_a_disk_that_cannot_be_read_stages_nothing(void)
{
    Fixture f;

    fixture_begin(&f, ROOM_FOR_TWO);
    atomic_store(&f.disk->fail_reads, EIO);
    g_assert_cmpint(do_fill(f.guest, 0, CLUSTER, 0x99), ==, -EIO);
    atomic_store(&f.disk->fail_reads, 0);
    assert_state(&f, 0, 0, NULL);
    g_assert_cmpint(do_fill(f.guest, 0, 2 * CLUSTER, 0x99), ==, 0);
    assert_frozen(&f, 0, SIZE);
    fixture_done(&f);
}

/* --- every call of the target fails once --- */

static const struct {
    int64_t offset, bytes;
} guest_writes[] = {
    { 5 * CLUSTER + 100, 1 },     { 2 * CLUSTER - 1, 2 },       { 0, 4096 },
    { 7 * CLUSTER, 3 * CLUSTER }, { 5 * CLUSTER, CLUSTER / 2 }, { SIZE - 600, 600 },
    { 0, 12 * CLUSTER },          { 12 * CLUSTER, CLUSTER },
};

/* The disk has the writes that went well, and the view what it had, or nothing. */
static void check_both(Fixture *f, const bool *done, bool may_break)
{
    g_autofree uint8_t *expected = g_malloc(SIZE);
    g_autofree uint8_t *got = g_malloc(SIZE);
    int ret = do_read(f->view, 0, SIZE, got);

    fill_with_numbers(expected);
    if (ret < 0) {
        g_assert_cmpint(ret, ==, -EACCES);
        g_assert_true(may_break);
    } else {
        g_assert_cmpmem(got, SIZE, expected, SIZE);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(guest_writes); i++) {
        if (done[i]) {
            memset(expected + guest_writes[i].offset, 0x99, guest_writes[i].bytes);
        }
    }
    g_assert_cmpint(do_read(f->guest, 0, SIZE, got), ==, 0);
    g_assert_cmpmem(got, SIZE, expected, SIZE);
}

/* Returns whether any call failed: the target's are fewer than `n` otherwise. */
static bool fail_from(const char *options, int n)
{
    bool staging = strstr(options, "staging");
    bool guest_fails = !staging && !strstr(options, "break-snapshot");
    bool done[G_N_ELEMENTS(guest_writes)], failed = false;
    Fixture f;

    fixture_begin(&f, options);
    memory_disk_hold(f.target, false, false);
    atomic_store(&f.target->fail_after, n);
    atomic_store(&f.target->fail_writes, EIO);
    for (size_t i = 0; i < G_N_ELEMENTS(guest_writes); i++) {
        int ret = do_fill(f.guest, guest_writes[i].offset, guest_writes[i].bytes, 0x99);

        done[i] = ret == 0;
        if (ret < 0) {
            g_assert_cmpint(ret, ==, -EIO);
            g_assert_true(guest_fails);
        }
    }
    wait_until_written(&f);
    for (size_t i = 0; i < G_N_ELEMENTS(guest_writes); i++) {
        failed = failed || !done[i];
    }
    failed = failed || view_read_error(&f, 0) == -EACCES;
    check_both(&f, done, !guest_fails);
    atomic_store(&f.target->fail_writes, 0);
    check_both(&f, done, !guest_fails);
    fixture_done(&f);
    return failed;
}

static void test_every_call_may_fail(void)
{
    static const char *const options[] = {
        "",
        ",'on-cbw-error':'break-snapshot'",
        ",'min-cluster-size':65536",
        ",'min-cluster-size':65536,'on-cbw-error':'break-snapshot'",
        ROOM_FOR_TWO,
        ",'staging-size':16384,'on-cbw-error':'break-snapshot'",
    };

    for (size_t i = 0; i < G_N_ELEMENTS(options); i++) {
        for (int n = 0; fail_from(options[i], n); n++) {
            g_assert_cmpint(n, <, 200);
        }
    }
}

/* --- drained sections: invariant 8 --- */

static void test_drain_parks_what_is_staged(void)
{
    DrainSection *section;
    Fixture f;
    int writes;

    fixture_begin(&f, ROOM_FOR_ALL);
    do_fill(f.guest, 0, CLUSTER, 0x99);
    memory_disk_wait_held(f.target, 1);
    do_fill(f.guest, 4 * CLUSTER, CLUSTER, 0x99);
    release_soon(&f);
    section = drain_begin_node(f.target_node);
    writes = atomic_load(&f.target->writes);
    g_assert_cmpint(writes, ==, 1);
    g_assert_cmpint(f.target->data[0], ==, 1);
    g_assert_cmpint(staged(&f), ==, CLUSTER);
    memset(f.target->data + 4 * CLUSTER, 0x55, CLUSTER); /* nobody else is there */
    g_assert_cmpint(atomic_load(&f.target->writes), ==, writes);
    drain_end(section);
    wait_until_written(&f);
    assert_frozen(&f, 0, SIZE);
    fixture_done(&f);
}

static void test_a_drained_write_does_not_wait_for_room(void)
{
    EventLoop *loop = event_loop_new("test", NULL);
    DrainSection *section;
    AsyncWrite write;
    Fixture f;

    fixture_begin(&f, ROOM_FOR_TWO);
    do_fill(f.guest, 0, 2 * CLUSTER, 0x99);
    memory_disk_wait_held(f.target, 1);
    start_write(&write, loop, f.guest, 4 * CLUSTER, 4 * CLUSTER, 0x99);
    release_soon(&f);
    section = drain_begin_node(f.disk_node);
    drain_end(section);
    g_assert_cmpint(finish_write(&write), ==, 0);
    assert_frozen(&f, 0, SIZE);
    fixture_done(&f);
    event_loop_free(loop);
}

static void test_removal_drops_what_is_staged(void)
{
    Fixture f;

    fixture_begin(&f, ROOM_FOR_ALL);
    do_fill(f.guest, 0, CLUSTER, 0x99);
    memory_disk_wait_held(f.target, 1);
    do_fill(f.guest, 4 * CLUSTER, CLUSTER, 0x99);
    fixture_done(&f); /* with what is on its way */
    g_assert_cmpstr(events->str, ==, "");
    fixture_begin(&f, ROOM_FOR_ALL);
    do_fill(f.guest, 0, CLUSTER, 0x99);
    fixture_done(&f); /* before anything is */
}

static void test_errors_of_opening(void)
{
    add_node(NODES, "disk");
    add_node(NODES, "target");
    assert_text(add_node_error(CBW, ",'min-cluster-size':65536,'staging-size':65535"),
                "staging-size must be at least 65536");
    assert_text(add_node_error(CBW, ",'staging-size':1"), "staging-size must be at least 4096");
    add_node(CBW, ",'staging-size':0");
    delete_node("cbw");
    add_node(CBW, ",'staging-size':9223372036854775807"); /* no more than the disk */
    delete_node("cbw");
    delete_node("disk");
    delete_node("target");
}

#define ADD(name) g_test_add_func("/staging/" #name, test_##name)

int main(int argc, char **argv)
{
    int ret;

    io_harness_init(&argc, &argv, true);
    events = g_string_new(NULL);
    qapi_event_emit_fn = note_event;
    ADD(a_write_waits_for_memory_alone);
    ADD(neighbours_are_written_together);
    ADD(small_units);
    ADD(zeroes_need_no_memory);
    ADD(what_is_discarded_is_dropped);
    ADD(a_full_buffer_makes_the_guest_wait);
    ADD(waiting_for_room_has_its_time_limit);
    ADD(the_time_limit_breaks_the_view);
    ADD(a_failing_target_breaks_the_view);
    ADD(who_waits_for_room_goes_on_when_the_view_breaks);
    ADD(what_is_read_as_the_view_breaks_does_not_stay);
    ADD(a_disk_that_cannot_be_read_stages_nothing);
    ADD(every_call_may_fail);
    ADD(drain_parks_what_is_staged);
    ADD(a_drained_write_does_not_wait_for_room);
    ADD(removal_drops_what_is_staged);
    ADD(errors_of_opening);
    ret = io_harness_run();
    qapi_event_emit_fn = NULL;
    g_string_free(events, TRUE);
    return ret;
}
