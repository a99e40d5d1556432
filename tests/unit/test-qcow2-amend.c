/* SPDX-License-Identifier: MIT */
/*
 * qcow2 images as a whole: amended, brought back to snapshots, given another backing file. qemu-img
 * makes them and finds nothing to complain of afterwards.
 */
#include "block/drivers.h"
#include "block/qcow2/qcow2.h"
#include "io-harness.h"
#include "util/error.h"
#include "util/size.h"

#include <stdlib.h>
#include <string.h>

#define DISK_SIZE (4 * MiB)
#define RW        (PERM_CONSISTENT_READ | PERM_WRITE)

/* --- calls --- */

typedef struct Call {
    BlockNode *node;
    const BlockAmendOptions *amend;
    const char *snapshot, *backing, *format;
    int ret;
    GError *error;
} Call;

static void coroutine_fn call_entry(void *opaque)
{
    Call *call = opaque;
    const BlockDriver *driver = call->node->driver;

    if (call->amend) {
        call->ret = driver->co_amend(call->node, call->amend, &call->error);
    } else if (call->snapshot) {
        call->ret = driver->co_snapshot_goto(call->node, call->snapshot, &call->error);
    } else {
        call->ret =
            driver->co_change_backing_file(call->node, call->backing, call->format, &call->error);
    }
}

/* The error's text, or NULL. */
static char *run_call(Call *call)
{
    DrainSection *section = drain_begin_node(call->node);
    char *text;

    coroutine_run(call_entry, call);
    drain_end(section);
    g_assert_true((call->ret < 0) == (call->error != NULL));
    text = call->error ? merino_error_text(call->error) : NULL;
    g_clear_error(&call->error);
    return text;
}

static char *amend(BlockNode *node, BlockAmendOptions options)
{
    Call call = { .node = node, .amend = &options };

    return run_call(&call);
}

static char *go_to(BlockNode *node, const char *id)
{
    Call call = { .node = node, .snapshot = id };

    return run_call(&call);
}

/* --- images --- */

static char *image_path;

static void make_image(const char *options)
{
    run_shell("qemu-img create -q -f qcow2 %s %s 4M && qemu-io -c 'write -P 1 0 1M' -c "
              "'write -P 2 2M 100k' -c 'write -z 3M 128k' %s > /dev/null",
              options, image_path, image_path);
}

static BlockNode *open_image(void)
{
    return add_node("{'driver':'qcow2','node-name':'q','file':{'driver':'file','filename':'%s'}}",
                    image_path);
}

static void check_image(const char *info)
{
    run_shell("qemu-img check -q %s && qemu-img info %s | grep -q '%s'", image_path, image_path,
              info);
}

static void assert_content(BlockNode *node)
{
    BlockBackend *user = open_user(node, PERM_CONSISTENT_READ);

    assert_filled(user, 0, MiB, 1);
    assert_filled(user, MiB, MiB, 0);
    assert_filled(user, 2 * MiB, 100 * KiB, 2);
    assert_filled(user, 3 * MiB, MiB, 0);
    backend_free(user);
}

/* --- tests --- */

static void test_refcount_widths(void)
{
    static const char *const images[] = { "", "-o cluster_size=512", "-o lazy_refcounts=on" };

    for (size_t i = 0; i < G_N_ELEMENTS(images); i++) {
        make_image(images[i]);
        for (int64_t bits = 1; bits <= 64; bits *= 2) {
            g_autofree char *info = g_strdup_printf("refcount bits: %d$", (int)bits);
            BlockNode *node = open_image();

            assert_text(amend(node, (BlockAmendOptions){ .has_refcount_bits = true,
                                                         .refcount_bits = bits }),
                        NULL);
            assert_content(node);
            delete_node("q");
            check_image(info);
        }
    }
}

static void test_narrow_refcounts_are_refused(void)
{
    g_autofree char *text = NULL;
    BlockNode *node;

    make_image("");
    run_shell("qemu-img snapshot -c one %s", image_path);
    node = open_image();
    text = amend(node, (BlockAmendOptions){ .has_refcount_bits = true, .refcount_bits = 1 });
    g_assert_true(g_str_has_prefix(text, "Cannot decrease refcount entry width to 1 bits: "
                                         "Cluster at offset 0x"));
    g_assert_true(g_str_has_suffix(text, " has a refcount of 2"));
    assert_text(amend(node, (BlockAmendOptions){ .has_refcount_bits = true, .refcount_bits = 3 }),
                "Refcount width must be a power of two and may not exceed 64 bits");
    assert_content(node);
    delete_node("q");
    check_image("refcount bits: 16");
}

static void test_versions(void)
{
    BlockNode *node;

    make_image("-o lazy_refcounts=on");
    node = open_image();
    assert_text(amend(node, (BlockAmendOptions){ .has_version = true,
                                                 .version = BLOCKDEV_QCOW2_VERSION_V2 }),
                NULL);
    assert_content(node);
    delete_node("q");
    check_image("compat: 0.10");
    node = open_image();
    assert_text(
        amend(node, (BlockAmendOptions){ .has_lazy_refcounts = true, .lazy_refcounts = true }),
        "Lazy refcounts only supported with compatibility level 1.1 and above (use "
        "compat=1.1 or greater)");
    assert_text(amend(node, (BlockAmendOptions){ .has_version = true,
                                                 .version = BLOCKDEV_QCOW2_VERSION_V3,
                                                 .has_lazy_refcounts = true,
                                                 .lazy_refcounts = true,
                                                 .has_size = true,
                                                 .size = 2 * DISK_SIZE }),
                NULL);
    g_assert_cmpint(node_size(node), ==, 2 * DISK_SIZE);
    assert_content(node);
    delete_node("q");
    check_image("lazy refcounts: true");
}

static void test_refusals(void)
{
    BlockNode *node;

    make_image("-o extended_l2=on");
    node = open_image();
    assert_text(amend(node, (BlockAmendOptions){ .has_version = true,
                                                 .version = BLOCKDEV_QCOW2_VERSION_V2 }),
                "Cannot downgrade an image with incompatible features 0x10 set");
    assert_text(amend(node, (BlockAmendOptions){ .backing_file = "x" }),
                "Cannot amend the backing file");
    assert_text(amend(node, (BlockAmendOptions){ .backing_file = "" }), NULL);
    assert_text(amend(node, (BlockAmendOptions){ .data_file = "x" }),
                "data-file can only be set for images that use an external data file");
    assert_text(
        amend(node, (BlockAmendOptions){ .has_data_file_raw = true, .data_file_raw = true }),
        "data-file-raw cannot be set on existing images");
    delete_node("q");
    check_image("extended l2: true");
}

/* Whether the mark "dirty" is in the file. */
static bool is_marked_dirty(void)
{
    g_autofree char *bytes = NULL;

    g_assert_true(g_file_get_contents(image_path, &bytes, NULL, NULL));
    return bytes[79] & 1;
}

/* A write that needs a cluster, and a flush: refcounts are postponed, or are not. */
static void write_and_flush(BlockNode *node, int64_t offset)
{
    BlockBackend *user = open_user(node, RW);

    g_assert_cmpint(do_fill(user, offset, 64 * KiB, 0), ==, 0);
    g_assert_cmpint(do_flush(user), ==, 0);
    backend_free(user);
}

static char *amend_lazy(BlockNode *node, bool lazy)
{
    return amend(node, (BlockAmendOptions){ .has_lazy_refcounts = true, .lazy_refcounts = lazy });
}

static void test_lazy_refcounts_at_once(void)
{
    BlockNode *node;

    make_image("");
    node = open_image();
    assert_text(amend_lazy(node, true), NULL);
    write_and_flush(node, 3 * MiB);
    g_assert_true(is_marked_dirty());
    assert_text(amend_lazy(node, false), NULL);
    g_assert_false(is_marked_dirty());
    write_and_flush(node, 3 * MiB + 256 * KiB);
    g_assert_false(is_marked_dirty());
    assert_text(amend_lazy(node, true), NULL);
    assert_text(amend(node, (BlockAmendOptions){ .has_version = true,
                                                 .version = BLOCKDEV_QCOW2_VERSION_V2 }),
                NULL);
    write_and_flush(node, 3 * MiB + 512 * KiB);
    g_assert_false(is_marked_dirty());
    assert_text(amend(node, (BlockAmendOptions){ .has_version = true,
                                                 .version = BLOCKDEV_QCOW2_VERSION_V3,
                                                 .has_lazy_refcounts = true,
                                                 .lazy_refcounts = true }),
                NULL);
    write_and_flush(node, 3 * MiB + 768 * KiB);
    g_assert_true(is_marked_dirty());
    assert_content(node);
    delete_node("q");
    check_image("lazy refcounts: true");
}

static BlockNode *open_lazily(bool lazy)
{
    return add_node("{'driver':'qcow2','node-name':'q','lazy-refcounts':%s,"
                    "'file':{'driver':'file','filename':'%s'}}",
                    lazy ? "true" : "false", image_path);
}

/* What the user said stays, whatever the image says, and the image is not changed by it. */
static void test_given_options_stay(void)
{
    BlockNode *node;

    make_image("");
    node = open_lazily(false);
    assert_text(amend_lazy(node, true), NULL);
    write_and_flush(node, 3 * MiB);
    g_assert_false(is_marked_dirty());
    delete_node("q");
    check_image("lazy refcounts: true");
    make_image("");
    node = open_lazily(true);
    write_and_flush(node, 3 * MiB);
    g_assert_true(is_marked_dirty());
    delete_node("q");
    g_assert_false(is_marked_dirty());
    check_image("lazy refcounts: false");
}

static void test_caches_follow_the_size(void)
{
    BlockNode *node;
    Qcow2 *q;
    int64_t before;

    make_image("-o cluster_size=512");
    node = open_image();
    q = node->state;
    before = q->options.l2_cache_size;
    assert_text(amend(node, (BlockAmendOptions){ .has_size = true, .size = 64 * DISK_SIZE }), NULL);
    g_assert_cmpint(q->options.l2_cache_size, ==, 64 * before);
    assert_content(node);
    delete_node("q");
    check_image("virtual size: 256 MiB");
}

static void test_compression_of_version_2(void)
{
    BlockAmendOptions down = { .has_version = true, .version = BLOCKDEV_QCOW2_VERSION_V2 };
    BlockNode *node;

    make_image("-o compression_type=zstd");
    node = open_image();
    assert_text(amend(node, down), NULL);
    assert_content(node);
    delete_node("q");
    check_image("compression type: zlib");
    make_image("-o compression_type=zstd,extended_l2=on");
    run_shell("qemu-io -c 'write -c -P 0 1M 64k' %s > /dev/null", image_path);
    node = open_image();
    assert_text(amend(node, down), "Cannot downgrade an image with incompatible features 0x10 set");
    delete_node("q");
    make_image("-o compression_type=zstd");
    run_shell("qemu-io -c 'write -c -P 0 1M 64k' %s > /dev/null", image_path);
    node = open_image();
    assert_text(amend(node, down), "Cannot downgrade an image with zstd compression type and "
                                   "existing compressed clusters");
    assert_content(node);
    delete_node("q");
    check_image("compression type: zstd");
}

static void test_back_to_a_snapshot(void)
{
    static const char *const images[] = { "", "-o compat=0.10", "-o cluster_size=4k",
                                          "-o extended_l2=on" };

    for (size_t i = 0; i < G_N_ELEMENTS(images); i++) {
        BlockNode *node;
        BlockBackend *user;

        make_image(images[i]);
        run_shell("qemu-img snapshot -c one %s", image_path);
        node = open_image();
        user = open_user(node, RW);
        g_assert_cmpint(do_fill(user, 0, 3 * MiB, 7), ==, 0);
        assert_text(go_to(node, "none"), "Can't find the snapshot");
        assert_text(go_to(node, "1"), NULL);
        assert_content(node);
        g_assert_cmpint(do_fill(user, MiB / 2, 64 * KiB, 8), ==, 0);
        backend_free(user);
        delete_node("q");
        check_image("one");
        node = open_image();
        assert_text(go_to(node, "1"), NULL);
        assert_content(node);
        delete_node("q");
        run_shell("qemu-img snapshot -d one %s && qemu-img check -q %s", image_path, image_path);
    }
}

static void test_backing_names(void)
{
    g_autofree char *base = temp_file("base.raw", DISK_SIZE);
    Call change = { .backing = "base.raw", .format = "raw" };

    make_image("");
    change.node = open_image();
    assert_text(run_call(&change), NULL);
    delete_node("q");
    check_image("backing file: base.raw");
    change.node = open_image();
    g_assert_nonnull(change.node->backing);
    change.backing = change.format = NULL;
    assert_text(run_call(&change), NULL);
    delete_node("q");
    run_shell("! qemu-img info %s | grep -q backing", image_path);
}

int main(int argc, char **argv)
{
    g_autofree char *qemu_img = g_find_program_in_path("qemu-img");
    int ret;

    io_harness_init(&argc, &argv, false);
    if (!qemu_img) {
        g_print("1..0 # SKIP qemu-img is not installed\n");
        return 0;
    }
    qcow2_driver_register();
    image_path = temp_path("image.qcow2");
    g_test_add_func("/qcow2/amend/refcounts", test_refcount_widths);
    g_test_add_func("/qcow2/amend/narrow", test_narrow_refcounts_are_refused);
    g_test_add_func("/qcow2/amend/versions", test_versions);
    g_test_add_func("/qcow2/amend/refusals", test_refusals);
    g_test_add_func("/qcow2/amend/lazy-refcounts", test_lazy_refcounts_at_once);
    g_test_add_func("/qcow2/amend/given-options", test_given_options_stay);
    g_test_add_func("/qcow2/amend/caches", test_caches_follow_the_size);
    g_test_add_func("/qcow2/amend/compression", test_compression_of_version_2);
    g_test_add_func("/qcow2/snapshot/goto", test_back_to_a_snapshot);
    g_test_add_func("/qcow2/backing-names", test_backing_names);
    ret = io_harness_run();
    g_free(image_path);
    return ret;
}
