/* SPDX-License-Identifier: MIT */
/*
 * copy-before-write and snapshot-access: what the view holds, what the guest pays, what happens
 * when copying fails. The numbers are those of the invariants in block/filters/copy-before-write.c.
 */
#include "cow-driver.h"
#include "io-harness.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

#define CLUSTER 65536
#define SIZE    (16 * CLUSTER + 512)
#define NODES   "{'driver':'null-co','node-name':'%s','size':1049088,'discard':'unmap'}" /* SIZE */
#define CBW                                                                                        \
    "{'driver':'copy-before-write','node-name':'cbw','file':'disk','target':'target',"             \
    "'discard':'unmap'%s}"
#define VIEW "{'driver':'snapshot-access','node-name':'view','file':'cbw','discard':'unmap'}"
#define RW   (PERM_CONSISTENT_READ | PERM_WRITE)

typedef struct Fixture {
    BlockNode *disk_node, *target_node;
    MemoryDisk *disk, *target;
    BlockNode *cbw;
    BlockBackend *guest, *view;
} Fixture;

/* A disk that holds its cluster's number plus 1 everywhere. */
static void fixture_begin(Fixture *f)
{
    f->disk_node = add_node(NODES, "disk");
    f->target_node = add_node(NODES, "target");
    f->disk = memory_disk(f->disk_node);
    f->target = memory_disk(f->target_node);
    for (int64_t i = 0; i < SIZE; i++) {
        f->disk->data[i] = i / CLUSTER + 1;
    }
    memset(f->target->data, 0xee, SIZE);
}

/* With any other options than these. */
static void fixture_freeze_with(Fixture *f, const char *options)
{
    f->cbw = add_node(CBW, options);
    add_node(VIEW);
    f->guest = open_user(f->cbw, RW);
    f->view = open_user(node_find("view"), RW);
}

/* Whole clusters are copied. */
static void fixture_freeze(Fixture *f, const char *options)
{
    g_autofree char *all = g_strconcat(options, ",'min-cluster-size':65536", NULL);

    fixture_freeze_with(f, all);
}

static void fixture_done(Fixture *f)
{
    backend_free(f->guest);
    backend_free(f->view);
    delete_node("view");
    delete_node("cbw");
    delete_node("disk");
    delete_node("target");
}

static void assert_frozen(Fixture *f, int64_t offset, int64_t bytes)
{
    assert_numbers(f->view, offset, bytes, CLUSTER);
}

static int view_read_error(Fixture *f, int64_t offset, int64_t bytes)
{
    g_autofree uint8_t *buf = g_malloc(bytes);

    return do_read(f->view, offset, bytes, buf);
}

/* --- the view --- */

static void test_the_view_stays_as_it_was(void)
{
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, "");
    assert_frozen(&f, 0, SIZE);
    g_assert_cmpint(do_fill(f.guest, CLUSTER - 1, 2, 0x99), ==, 0); /* two clusters */
    g_assert_cmpint(do_zero(f.guest, 4 * CLUSTER, 10, 0), ==, 0);
    g_assert_cmpint(do_discard(f.guest, 6 * CLUSTER + 512, 2 * CLUSTER), ==, 0); /* three */
    g_assert_cmpint(do_fill(f.guest, SIZE - 1, 1, 0x99), ==, 0);                 /* the last */
    assert_frozen(&f, 0, SIZE);
    assert_filled(f.guest, CLUSTER - 1, 2, 0x99);
    assert_filled(f.guest, 4 * CLUSTER, 10, 0);
    g_assert_cmpint(do_fill(f.guest, 0, SIZE, 0x77), ==, 0);
    assert_frozen(&f, 0, SIZE);
    assert_frozen(&f, 1000, 3 * CLUSTER);
    assert_filled(f.guest, 0, SIZE, 0x77);
    fixture_done(&f);
}

static void test_only_the_first_write_to_a_cluster_copies(void)
{
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, "");
    do_fill(f.guest, 0, 512, 1);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 1);
    g_assert_cmpint(atomic_load(&f.disk->reads), ==, 1);
    do_fill(f.guest, 512, 4096, 2);
    do_zero(f.guest, CLUSTER - 512, 512, 0);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 1);
    do_fill(f.guest, CLUSTER, 8 * CLUSTER, 3); /* neighbours in one go */
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 2);
    g_assert_cmpint(atomic_load(&f.target->last_bytes), ==, 8 * CLUSTER);
    fixture_done(&f);
}

/* Where nobody asks for clusters a write costs what it touches, and the rest of the cluster when it
 * goes on where another one was. */
static void test_a_small_write_costs_a_small_copy(void)
{
    DirtyBitmap *shown;
    Fixture f;

    fixture_begin(&f);
    fixture_freeze_with(&f, "");
    do_fill(f.guest, 2 * CLUSTER + 8192 - 1, 2, 1);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 1);
    g_assert_cmpint(atomic_load(&f.target->last_bytes), ==, 8192);
    g_assert_cmpint(f.target->data[2 * CLUSTER + 4095], ==, 0xee);
    g_assert_cmpint(f.target->data[2 * CLUSTER + 3 * 4096], ==, 0xee);
    assert_frozen(&f, 0, SIZE);
    do_fill(f.guest, 2 * CLUSTER + 3 * 4096, 512, 2);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 2);
    g_assert_cmpint(atomic_load(&f.target->last_bytes), ==, CLUSTER - 3 * 4096);
    shown = bitmap_list_next(f.disk_node->bitmaps, NULL);
    g_assert_cmpint(bitmap_dirty_bytes(shown), ==, 17 * CLUSTER); /* something is pending in each */
    do_fill(f.guest, 3 * CLUSTER, 512, 2);
    g_assert_cmpint(atomic_load(&f.target->last_bytes), ==, CLUSTER);
    do_fill(f.guest, 2 * CLUSTER, 1, 2);
    g_assert_cmpint(bitmap_dirty_bytes(shown), ==, 15 * CLUSTER);
    do_fill(f.guest, SIZE - 512, 512, 2);
    g_assert_cmpint(atomic_load(&f.target->last_bytes), ==, 512);
    assert_frozen(&f, 0, SIZE);
    fixture_done(&f);
}

static void test_zeroes_are_copied_as_zeroes(void)
{
    Fixture f;

    fixture_begin(&f);
    f.disk->tells_zeroes = true;
    memset(f.disk->data + CLUSTER, 0, 2 * CLUSTER);
    memset(f.disk->data + 4 * CLUSTER, 0, CLUSTER / 2); /* mixed: data */
    fixture_freeze(&f, "");
    do_fill(f.guest, CLUSTER, 2 * CLUSTER, 9);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 0);
    g_assert_cmpint(atomic_load(&f.target->zeroes), ==, 1);
    assert_filled(f.view, CLUSTER, 2 * CLUSTER, 0);
    do_fill(f.guest, 4 * CLUSTER, 1, 9);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 1);
    assert_filled(f.view, 4 * CLUSTER, CLUSTER / 2, 0);
    assert_filled(f.view, 4 * CLUSTER + CLUSTER / 2, CLUSTER / 2, 5);
    fixture_done(&f);
}

static void test_zeroes_of_the_target_are_left(void)
{
    Fixture f;

    fixture_begin(&f);
    f.disk->tells_zeroes = f.target->tells_zeroes = true;
    memset(f.disk->data, 0, 2 * CLUSTER);
    memset(f.target->data, 0, CLUSTER);
    fixture_freeze(&f, "");
    do_fill(f.guest, 0, CLUSTER, 9);
    g_assert_cmpint(atomic_load(&f.target->zeroes), ==, 0);
    do_fill(f.guest, CLUSTER, CLUSTER, 9);
    g_assert_cmpint(atomic_load(&f.target->zeroes), ==, 1);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 0);
    assert_filled(f.view, 0, 2 * CLUSTER, 0);
    fixture_done(&f);
}

/* The target may be an overlay of the very disk: what it shows before it has anything of its own
 * are the disk's bytes, which change. */
static void freeze_onto_overlay(const char *target)
{
    BlockNode *file;
    Fixture f;

    fixture_begin(&f);
    f.disk->tells_zeroes = true;
    memset(f.disk->data, 0, SIZE);
    file = add_node("{'driver':'null-co','node-name':'file','size':2097152}");
    strcpy((char *)memory_disk(file)->data, "COW\n1049088\n\n\n\n");
    add_node("{'driver':'qcow2','node-name':'overlay','file':'file','backing':'disk'}");
    add_node("{'driver':'raw','node-name':'raw','file':'overlay'}");
    f.cbw = add_node("{'driver':'copy-before-write','node-name':'cbw','file':'disk',"
                     "'target':'%s','discard':'unmap'}",
                     target);
    add_node(VIEW);
    f.guest = open_user(f.cbw, RW);
    f.view = open_user(node_find("view"), RW);

    g_assert_cmpint(do_fill(f.guest, 0, SIZE, 0x77), ==, 0);
    assert_filled(f.guest, 0, SIZE, 0x77);
    assert_filled(f.view, 0, SIZE, 0);
    backend_free(f.guest);
    backend_free(f.view);
    delete_node("view");
    delete_node("cbw");
    delete_node("raw");
    delete_node("overlay");
    delete_node("file");
    delete_node("disk");
    delete_node("target");
}

static void test_zeroes_are_copied_to_an_overlay_of_the_disk(void)
{
    freeze_onto_overlay("overlay");
    freeze_onto_overlay("raw");
}

static void test_block_status_is_that_of_the_frozen_bytes(void)
{
    BlockStatus status;
    Fixture f;

    fixture_begin(&f);
    f.disk->tells_zeroes = f.target->tells_zeroes = true;
    memset(f.disk->data + CLUSTER, 0, 2 * CLUSTER);
    fixture_freeze(&f, "");
    do_fill(f.guest, CLUSTER, 4096, 9);
    g_assert_cmpint(do_status(f.view, 0, SIZE, &status), ==, 0);
    g_assert_cmpint(status.bytes, ==, CLUSTER);
    g_assert_true(status.flags & BLOCK_STATUS_DATA);
    g_assert_cmpint(status.depth, ==, 0);
    for (int64_t offset = CLUSTER; offset < 3 * CLUSTER; offset += status.bytes) {
        g_assert_cmpint(do_status(f.view, offset, SIZE - offset, &status), ==, 0);
        g_assert_true(status.flags & BLOCK_STATUS_ZERO);
        g_assert_true(status.flags & BLOCK_STATUS_ALLOCATED);
        g_assert_cmpint(status.bytes, ==, CLUSTER); /* one copied, one on the disk */
    }
    g_assert_cmpint(do_status(f.view, SIZE - 1, 1, &status), ==, 0);
    g_assert_true(status.flags & BLOCK_STATUS_EOF);
    fixture_done(&f);
}

static void test_the_view_is_not_written(void)
{
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, "");
    g_assert_cmpint(do_fill(f.view, 0, 512, 1), ==, -ENOTSUP);
    g_assert_cmpint(do_zero(f.view, 0, 512, 0), ==, -ENOTSUP);
    g_assert_cmpint(do_flush(f.view), ==, 0);
    assert_frozen(&f, 0, SIZE);
    fixture_done(&f);
}

static void test_a_snapshot_of_something_else_has_no_bytes(void)
{
    BlockBackend *user;
    BlockStatus status;
    char buf[512];

    add_node(NODES, "disk");
    user = open_user(add_node("{'driver':'snapshot-access','node-name':'s','file':'disk'}"), 1);
    g_assert_cmpint(do_read(user, 0, 512, buf), ==, -ENOTSUP);
    g_assert_cmpint(do_status(user, 0, 512, &status), ==, -ENOTSUP);
    backend_free(user);
    delete_node("s");
    delete_node("disk");
}

/* --- bitmap --- */

static void test_only_what_was_asked_for_is_kept(void)
{
    BitmapAddOptions options = { .name = "b", .granularity = 512 };
    BlockStatus status;
    DirtyBitmap *bitmap;
    Fixture f;

    fixture_begin(&f);
    bitmap = bitmap_add(f.disk_node->bitmaps, &options, NULL, NULL);
    bitmap_set_range(bitmap, 2 * CLUSTER + 512, 512);
    bitmap_set_range(bitmap, 5 * CLUSTER - 1, 2);
    fixture_freeze(&f, ",'bitmap':{'node':'disk','name':'b'}");
    bitmap_clear(bitmap, NULL, NULL); /* does not matter any more */
    assert_frozen(&f, 2 * CLUSTER, CLUSTER);
    assert_frozen(&f, 4 * CLUSTER, 2 * CLUSTER);
    g_assert_cmpint(view_read_error(&f, 0, 1), ==, -EACCES);
    g_assert_cmpint(view_read_error(&f, 2 * CLUSTER, CLUSTER + 1), ==, -EACCES);
    g_assert_cmpint(do_status(f.view, 0, SIZE, &status), ==, -EACCES);
    g_assert_cmpint(do_status(f.view, 2 * CLUSTER, SIZE, &status), ==, -EIO); /* beyond the end */
    g_assert_cmpint(do_status(f.view, 2 * CLUSTER, 2 * CLUSTER, &status), ==, 0);
    g_assert_cmpint(status.bytes, ==, CLUSTER);
    do_fill(f.guest, 0, 2 * CLUSTER, 9);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 0);
    do_fill(f.guest, 0, SIZE, 9);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 2);
    assert_frozen(&f, 2 * CLUSTER, CLUSTER);
    assert_frozen(&f, 4 * CLUSTER, 2 * CLUSTER);
    fixture_done(&f);
}

static void test_a_busy_bitmap_will_do(void)
{
    BitmapAddOptions options = { .name = "b", .granularity = 512 };
    DirtyBitmap *bitmap;
    Fixture f;

    fixture_begin(&f);
    bitmap = bitmap_add(f.disk_node->bitmaps, &options, NULL, NULL);
    bitmap_set_range(bitmap, SIZE - 1, 1);
    bitmap_hold(bitmap);
    fixture_freeze(&f, ",'bitmap':{'node':'disk','name':'b'}");
    bitmap_release(bitmap);
    assert_frozen(&f, 16 * CLUSTER, 512);
    g_assert_cmpint(view_read_error(&f, 15 * CLUSTER, 1), ==, -EACCES);
    fixture_done(&f);
}

static void test_what_is_discarded_is_forgotten(void)
{
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, "");
    do_fill(f.guest, 0, 512, 9);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 1);
    g_assert_cmpint(do_discard(f.view, 512, 3 * CLUSTER), ==, 0); /* rounded inwards */
    assert_frozen(&f, 0, CLUSTER);
    assert_frozen(&f, 3 * CLUSTER, CLUSTER);
    g_assert_cmpint(view_read_error(&f, CLUSTER, 1), ==, -EACCES);
    g_assert_cmpint(view_read_error(&f, 3 * CLUSTER - 1, 1), ==, -EACCES);
    do_fill(f.guest, CLUSTER, 2 * CLUSTER, 9);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 1);
    g_assert_cmpint(do_discard(f.view, 0, CLUSTER), ==, 0);
    g_assert_cmpint(view_read_error(&f, 0, 1), ==, -EACCES);
    g_assert_cmpint(f.target->data[0], ==, 0xdd);                  /* its space is given back */
    g_assert_cmpint(do_discard(f.view, 16 * CLUSTER, 512), ==, 0); /* a part, but the last one */
    g_assert_cmpint(view_read_error(&f, SIZE - 1, 1), ==, -EACCES);
    fixture_done(&f);
}

/* --- who waits for whom --- */

static void test_a_write_waits_for_the_copy_and_for_no_other(void)
{
    AsyncWrite write, other;
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, "");
    do_fill(f.guest, 5 * CLUSTER, 1, 9);
    memory_disk_hold(f.target, true, false);
    start_write(&write, event_loop_main(), f.guest, 0, 512, 9);
    memory_disk_wait_held(f.target, 1);
    start_write(&other, event_loop_main(), f.guest, 5 * CLUSTER, 512, 9);
    g_assert_cmpint(finish_write(&other), ==, 0); /* that cluster is copied */
    g_assert_false(atomic_load(&write.done));
    assert_frozen(&f, 0, CLUSTER); /* a reader does not wait either */
    g_assert_cmpint(f.disk->data[0], ==, 1);
    memory_disk_hold(f.target, false, false);
    g_assert_cmpint(finish_write(&write), ==, 0);
    assert_frozen(&f, 0, CLUSTER);
    fixture_done(&f);
}

static void test_writes_of_one_cluster_share_its_copy(void)
{
    AsyncWrite a, b;
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, "");
    memory_disk_hold(f.target, true, false);
    start_write(&a, event_loop_main(), f.guest, 0, 512, 9);
    start_write(&b, event_loop_main(), f.guest, 512, CLUSTER, 9);
    memory_disk_wait_held(f.target, 1);
    memory_disk_hold(f.target, false, false);
    g_assert_cmpint(finish_write(&a), ==, 0);
    g_assert_cmpint(finish_write(&b), ==, 0);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 2);
    assert_frozen(&f, 0, 2 * CLUSTER);
    fixture_done(&f);
}

typedef struct AsyncRead {
    BlockBackend *user;
    uint8_t buf[512];
    int ret;
    atomic_bool done;
} AsyncRead;

static void coroutine_fn async_read_entry(void *opaque)
{
    AsyncRead *read = opaque;
    IoVector vec;

    iov_init_buf(&vec, read->buf, sizeof(read->buf));
    read->ret = backend_co_preadv(read->user, 0, sizeof(read->buf), &vec, 0);
    atomic_store(&read->done, true);
}

/* Invariant 3, with a reader that is stuck on the disk. */
static void test_a_write_waits_for_a_reader_on_the_disk(void)
{
    AsyncRead read = { 0 };
    AsyncWrite write;
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, "");
    read.user = f.view;
    memory_disk_hold(f.disk, false, true);
    coroutine_start(async_read_entry, &read);
    memory_disk_wait_held(f.disk, 1);
    start_write(&write, event_loop_main(), f.guest, 0, 512, 9);
    memory_disk_wait_held(f.disk, 2); /* the copy, which reads as well */
    memory_disk_hold(f.disk, false, false);
    g_assert_cmpint(finish_write(&write), ==, 0);
    g_assert_true(atomic_load(&read.done)); /* it was first */
    g_assert_cmpint(read.buf[0], ==, 1);
    fixture_done(&f);
}

/* --- failure --- */

static void test_break_guest_write(void)
{
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, ",'on-cbw-error':'break-guest-write'");
    atomic_store(&f.target->fail_writes, ENOSPC);
    g_assert_cmpint(do_fill(f.guest, 0, 512, 9), ==, -ENOSPC);
    g_assert_cmpint(f.disk->data[0], ==, 1);
    assert_frozen(&f, 0, SIZE);
    atomic_store(&f.target->fail_writes, 0);
    g_assert_cmpint(do_fill(f.guest, 0, 512, 9), ==, 0); /* tried again */
    assert_frozen(&f, 0, SIZE);
    atomic_store(&f.disk->fail_reads, EIO);
    g_assert_cmpint(do_fill(f.guest, CLUSTER, 512, 9), ==, -EIO);
    atomic_store(&f.disk->fail_reads, 0);
    assert_frozen(&f, 0, SIZE);
    fixture_done(&f);
}

/* Invariant 5. */
static void test_break_snapshot(void)
{
    BlockStatus status;
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, ",'on-cbw-error':'break-snapshot'");
    do_fill(f.guest, CLUSTER, 512, 9);
    atomic_store(&f.target->fail_writes, ENOSPC);
    g_assert_cmpint(do_fill(f.guest, 0, 512, 9), ==, 0);
    g_assert_cmpint(f.disk->data[0], ==, 9);
    atomic_store(&f.target->fail_writes, 0);
    g_assert_cmpint(view_read_error(&f, 0, 512), ==, -EACCES);
    g_assert_cmpint(view_read_error(&f, CLUSTER, 512), ==, -EACCES); /* copied, lost as well */
    g_assert_cmpint(do_status(f.view, 0, 512, &status), ==, -EACCES);
    g_assert_cmpint(do_discard(f.view, 0, CLUSTER), ==, 0);
    g_assert_cmpint(do_fill(f.guest, 0, SIZE, 8), ==, 0);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 2); /* nothing is copied any more */
    fixture_done(&f);
}

static void test_a_broken_view_lets_no_write_past_its_readers(void)
{
    AsyncRead read = { 0 };
    AsyncWrite write;
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, ",'on-cbw-error':'break-snapshot'");
    read.user = f.view;
    memory_disk_hold(f.disk, false, true);
    coroutine_start(async_read_entry, &read);
    memory_disk_wait_held(f.disk, 1);
    atomic_store(&f.target->fail_writes, EIO);
    start_write(&write, event_loop_main(), f.guest, 0, 512, 9);
    memory_disk_wait_held(f.disk, 2);
    memory_disk_hold(f.disk, false, false);
    g_assert_cmpint(finish_write(&write), ==, 0);
    g_assert_true(atomic_load(&read.done));
    g_assert_true(read.ret == -EACCES || read.buf[0] == 1);
    fixture_done(&f);
}

static void test_time_limit_breaks_the_guests_write(void)
{
    AsyncWrite again;
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, ",'cbw-timeout':1");
    memory_disk_hold(f.target, true, false);
    g_assert_cmpint(do_fill(f.guest, 0, 512, 9), ==, -ETIMEDOUT);
    g_assert_cmpint(f.disk->data[0], ==, 1);
    start_write(&again, event_loop_main(), f.guest, 0, 512, 9);
    memory_disk_hold(f.target, false, false);
    g_assert_cmpint(finish_write(&again), ==, 0);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 1); /* the first one's copy was used */
    assert_frozen(&f, 0, SIZE);
    fixture_done(&f);
}

static void test_time_limit_breaks_the_snapshot(void)
{
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, ",'cbw-timeout':1,'on-cbw-error':'break-snapshot'");
    memory_disk_hold(f.target, true, false);
    g_assert_cmpint(do_fill(f.guest, 0, 512, 9), ==, 0);
    g_assert_cmpint(f.disk->data[0], ==, 9);
    g_assert_cmpint(view_read_error(&f, CLUSTER, 1), ==, -EACCES);
    g_assert_cmpint(do_fill(f.guest, CLUSTER, 512, 9), ==, 0); /* at once */
    memory_disk_hold(f.target, false, false); /* closing waits for the copy that is left */
    fixture_done(&f);
}

/* --- drain, while a copy takes longer than its time limit --- */

static void release_target(void *opaque)
{
    memory_disk_hold(opaque, false, false);
}

static void test_drain_waits_for_a_copy_that_was_left_alone(void)
{
    DrainSection *section;
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, ",'cbw-timeout':1");
    memory_disk_hold(f.target, true, false);
    g_assert_cmpint(do_fill(f.guest, 0, 512, 9), ==, -ETIMEDOUT);
    event_loop_call(event_loop_main(), release_target, f.target);
    section = drain_begin_node(f.target_node);
    g_assert_cmpint(f.target->held, ==, 0);
    g_assert_cmpint(f.target->data[0], ==, 1); /* the copy has ended */
    drain_end(section);
    assert_frozen(&f, 0, SIZE);
    fixture_done(&f);
}

static void test_a_drained_write_leaves_no_copy_alone(void)
{
    EventLoop *loop = event_loop_new("test", NULL);
    EventTimer *timer;
    DrainSection *section;
    AsyncWrite write;
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, ",'cbw-timeout':1,'on-cbw-error':'break-snapshot'");
    memory_disk_hold(f.target, true, false);
    start_write(&write, loop, f.guest, 0, 512, 9);
    memory_disk_wait_held(f.target, 1);
    timer = event_timer_new(event_loop_main(), release_target, f.target);
    event_timer_set(timer, event_loop_now_ns() + 1200 * INT64_C(1000000));
    section = drain_begin_node(f.disk_node); /* the time limit passes while this waits */
    g_assert_cmpint(f.target->held, ==, 0);
    drain_end(section);
    g_assert_cmpint(finish_write(&write), ==, 0);
    g_assert_cmpint(view_read_error(&f, 0, 1), ==, -EACCES);
    event_timer_free(timer);
    event_loop_free(loop);
    fixture_done(&f);
}

/* --- control --- */

static void test_errors_of_opening(void)
{
    BitmapAddOptions options = { .name = "b", .granularity = CLUSTER };
    Fixture f;

    fixture_begin(&f);
    assert_text(add_node_error(CBW, ",'bitmap':{'node':'none','name':'b'}"),
                "Node 'none' not found");
    assert_text(add_node_error(CBW, ",'bitmap':{'node':'disk','name':'b'}"),
                "Dirty bitmap 'b' not found");
    assert_text(add_node_error(CBW, ",'min-cluster-size':65537"),
                "min-cluster-size needs to be a power of 2");
    assert_text(add_node_error(CBW, ",'min-cluster-size':134217728"),
                "min-cluster-size too large: 134217728 > 67108864");
    bitmap_add(add_node("{'driver':'null-co','node-name':'small','size':65536}")->bitmaps, &options,
               NULL, NULL);
    assert_text(add_node_error(CBW, ",'bitmap':{'node':'small','name':'b'}"),
                "Cannot create block-copy-state: Failed to merge bitmap 'b' to internal "
                "copy-bitmap: Bitmaps are of different sizes (destination size is 1049088, source "
                "size is 65536) and can't be merged");
    assert_text(add_node_error("{'driver':'copy-before-write','node-name':'cbw','file':'disk',"
                               "'target':'none'}"),
                "Cannot find device='none' nor node-name='none'");
    g_assert_null(bitmap_list_next(f.disk_node->bitmaps, NULL)); /* nothing was left behind */
    delete_node("small");
    delete_node("disk");
    delete_node("target");
}

static void test_larger_clusters(void)
{
    Fixture f;

    fixture_begin(&f);
    fixture_freeze_with(&f, ",'min-cluster-size':2097152");
    do_fill(f.guest, 1000, 1, 9);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 2); /* in pieces */
    do_fill(f.guest, 0, SIZE, 9);
    g_assert_cmpint(atomic_load(&f.target->writes), ==, 2);
    assert_frozen(&f, 0, SIZE);
    fixture_done(&f);
}

static void test_bitmaps_show_what_is_kept(void)
{
    DirtyBitmap *pending, *access, *done;
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, "");
    pending = bitmap_list_next(f.disk_node->bitmaps, NULL);
    access = bitmap_list_next(f.cbw->bitmaps, NULL);
    done = bitmap_list_next(f.cbw->bitmaps, access);
    g_assert_null(bitmap_name(pending));
    g_assert_false(bitmap_is_enabled(pending) || bitmap_is_enabled(access));
    g_assert_cmpint(bitmap_dirty_bytes(pending), ==, 17 * CLUSTER);
    g_assert_cmpint(bitmap_dirty_bytes(access), ==, 17 * CLUSTER);
    do_fill(f.guest, 0, 2 * CLUSTER, 1);
    g_assert_cmpint(bitmap_dirty_bytes(pending), ==, 15 * CLUSTER);
    g_assert_cmpint(bitmap_dirty_bytes(done), ==, 2 * CLUSTER);
    g_assert_cmpint(bitmap_dirty_bytes(access), ==, 17 * CLUSTER);
    fixture_done(&f);
}

static void test_the_disk_may_grow_but_not_shrink(void)
{
    GError *error = NULL;
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, "");
    g_assert_false(node_resize(f.cbw, 4 * CLUSTER, &error));
    g_assert_cmpstr(error->message, ==,
                    "Node 'cbw' keeps a frozen view of the disk, which cannot be shrunk");
    g_clear_error(&error);
    g_assert_true(node_resize(f.cbw, 20 * CLUSTER, &error));
    g_assert_no_error(error);
    g_assert_cmpint(backend_size(f.guest), ==, 20 * CLUSTER);
    g_assert_cmpint(backend_size(f.view), ==, SIZE);
    g_assert_cmpint(do_fill(f.guest, 0, 20 * CLUSTER, 9), ==, 0);
    assert_frozen(&f, 0, SIZE);
    fixture_done(&f);
}

static void test_a_view_has_the_size_it_was_frozen_with(void)
{
    BlockBackend *late;
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, "");
    g_assert_true(node_resize(f.cbw, 20 * CLUSTER, NULL));
    late = open_user(add_node("{'driver':'snapshot-access','node-name':'late','file':'cbw'}"), RW);
    g_assert_cmpint(backend_size(late), ==, SIZE);
    g_assert_cmpint(do_fill(f.guest, SIZE - 512, 1024, 9), ==, 0);
    assert_numbers(late, 0, SIZE, CLUSTER);
    backend_free(late);
    delete_node("late");
    fixture_done(&f);
}

/* The filter keeps no books in a node that may go. */
static void test_a_filter_beneath_is_taken_away(void)
{
    char below[] = "{'driver':'copy-before-write','node-name':'below','file':'disk',"
                   "'target':'other'}";
    Fixture f;

    fixture_begin(&f);
    add_node("{'driver':'null-co','node-name':'other','size':1049088}");
    insert_filter(below);
    f.cbw = add_node("{'driver':'copy-before-write','node-name':'cbw','file':'below',"
                     "'target':'target','discard':'unmap'}");
    add_node(VIEW);
    f.guest = open_user(f.cbw, RW);
    f.view = open_user(node_find("view"), RW);
    g_assert_cmpint(do_fill(f.guest, 0, CLUSTER, 0x77), ==, 0);
    g_assert_true(node_remove_filter("below", NULL, NULL));
    g_assert_null(node_find("below"));
    g_assert_true(f.cbw->file->node == f.disk_node);
    g_assert_cmpint(do_fill(f.guest, CLUSTER, 2 * CLUSTER, 0x77), ==, 0);
    assert_frozen(&f, 0, SIZE);
    fixture_done(&f);
    delete_node("other");
}

static void test_the_disk_is_written_through_the_filter_alone(void)
{
    BlockBackend *other;
    GError *error = NULL;
    Fixture f;

    fixture_begin(&f);
    fixture_freeze(&f, "");
    other = backend_new("a test", RW, PERM_ALL);
    g_assert_false(backend_attach(other, f.disk_node, &error));
    g_assert_true(g_str_has_prefix(error->message, "Permission conflict on node 'disk'"));
    g_clear_error(&error);
    backend_free(other);
    fixture_done(&f);
}

#define ADD(name) g_test_add_func("/copy-before-write/" #name, test_##name)

int main(int argc, char **argv)
{
    io_harness_init(&argc, &argv, true);
    cow_driver_register();
    ADD(the_view_stays_as_it_was);
    ADD(only_the_first_write_to_a_cluster_copies);
    ADD(a_small_write_costs_a_small_copy);
    ADD(zeroes_are_copied_as_zeroes);
    ADD(zeroes_of_the_target_are_left);
    ADD(zeroes_are_copied_to_an_overlay_of_the_disk);
    ADD(block_status_is_that_of_the_frozen_bytes);
    ADD(the_view_is_not_written);
    ADD(a_snapshot_of_something_else_has_no_bytes);
    ADD(only_what_was_asked_for_is_kept);
    ADD(a_busy_bitmap_will_do);
    ADD(what_is_discarded_is_forgotten);
    ADD(a_write_waits_for_the_copy_and_for_no_other);
    ADD(writes_of_one_cluster_share_its_copy);
    ADD(a_write_waits_for_a_reader_on_the_disk);
    ADD(break_guest_write);
    ADD(break_snapshot);
    ADD(a_broken_view_lets_no_write_past_its_readers);
    ADD(time_limit_breaks_the_guests_write);
    ADD(time_limit_breaks_the_snapshot);
    ADD(drain_waits_for_a_copy_that_was_left_alone);
    ADD(a_drained_write_leaves_no_copy_alone);
    ADD(errors_of_opening);
    ADD(larger_clusters);
    ADD(bitmaps_show_what_is_kept);
    ADD(the_disk_may_grow_but_not_shrink);
    ADD(a_view_has_the_size_it_was_frozen_with);
    ADD(a_filter_beneath_is_taken_away);
    ADD(the_disk_is_written_through_the_filter_alone);
    return io_harness_run();
}
