/* SPDX-License-Identifier: MIT */
/* Backing chains: how they are found, opened, shown, read through and exchanged. */
#include "block/backing.h"
#include "block/drivers.h"
#include "cow-driver.h"
#include "io-harness.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define RW (PERM_CONSISTENT_READ | PERM_WRITE)

/* An image "n" over the file `image`; `more` are further options. */
static BlockNode *add_image(const char *image, const char *more)
{
    return add_node("{'driver':'qcow2','node-name':'n','file':{'driver':'file','filename':'%s'}%s}",
                    image, more);
}

static char *add_image_error(const char *image, const char *more)
{
    return add_node_error("{'driver':'qcow2','node-name':'n',"
                          "'file':{'driver':'file','filename':'%s'}%s}",
                          image, more);
}

static void raw_file(const char *name, int64_t size, int byte)
{
    g_autofree char *text = g_malloc(size);

    memset(text, byte, size);
    g_assert_true(g_file_set_contents(name, text, size, NULL));
}

/* Images are named from the temporary folder, as relative names. */
static void make_images(void)
{
    g_autofree char *folder = temp_path("");

    g_assert_cmpint(chdir(folder), ==, 0);
    run_shell("mkdir -p sub");
    raw_file("base.raw", MiB, 'b');
    raw_file("other.raw", MiB, 'o');
    raw_file("short.raw", 65536 + 512, 's');
    raw_file("sub/base.raw", MiB, 'u');
    raw_file("with:colon.raw", MiB, 'c');
    cow_make("plain", MiB, NULL, NULL);
    cow_make("mid", MiB, "base.raw", "raw");
    cow_make("top", 2 * MiB, "mid", "qcow2");
}

static void assert_shown(const BlockNode *node, const char *filename)
{
    g_assert_cmpstr(node->filename, ==, filename);
}

/* --- opening what the header names --- */

static void test_names_in_headers(void)
{
    static const struct {
        const char *name, *format;
        const char *driver, *shown; /* of the backing node */
        const char *full;           /* the name as it is reported; NULL: as it stands */
        int byte;
    } cases[] = {
        { "base.raw", "raw", "raw", "base.raw", NULL, 'b' },
        { "base.raw", NULL, "raw", "base.raw", NULL, 'b' },
        { "file:base.raw", "raw", "raw", "base.raw", NULL, 'b' },
        { "base.raw", "file", "file", "base.raw", NULL, 'b' },
        { "mid", NULL, "qcow2", "mid", NULL, 'b' },
        { "./with:colon.raw", "raw", "raw", "./with:colon.raw", NULL, 'c' },
        { "blkdebug::base.raw", "raw", "raw", "blkdebug::base.raw", NULL, 'b' },
        { "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"base.raw\"}}",
          NULL, "raw", "base.raw", NULL, 'b' },
        { "json:{\"driver\":\"file\",\"filename\":\"base.raw\"}", NULL, "file", "base.raw", NULL,
          'b' },
        { "json:{\"file.driver\":\"file\",\"file.filename\":\"base.raw\"}", "raw", "raw",
          "base.raw", NULL, 'b' },
        { "json:{\"file\":{\"filename\":\"base.raw\"}}", "raw", "raw", "base.raw", NULL, 'b' },
        { "json:{\"file\":{\"filename\":\"mid\"}}", NULL, "qcow2", "mid", NULL, 'b' },
        { "json:{\"driver\":\"raw\",\"file.driver\":\"null-co\",\"file.size\":\"65536\","
          "\"file.read-zeroes\":true}",
          "raw", "raw",
          "json:{\"driver\": \"raw\", \"file\": {\"read-zeroes\": true, \"driver\": \"null-co\", "
          "\"size\": 65536}}",
          NULL, 0 },
        { "json:{\"driver\":\"blkdebug\",\"image\":{\"driver\":\"file\",\"filename\":\"base.raw\"},"
          "\"inject-error.0.event\":\"l1_update\",\"inject-error.0.once\":\"on\"}",
          NULL, "blkdebug",
          "json:{\"inject-error.0.once\": true, \"image\": {\"driver\": \"file\", \"filename\": "
          "\"base.raw\"}, \"driver\": \"blkdebug\", \"inject-error.0.event\": \"l1_update\"}",
          NULL, 'b' },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        BlockNode *node, *backing;
        BlockDeviceInfo *info;
        BlockBackend *user;

        cow_make("n", MiB, cases[i].name, cases[i].format);
        node = add_image("n", "");
        backing = node->backing->node;
        user = open_user(node, RW);
        g_assert_cmpstr(backing->driver->name, ==, cases[i].driver);
        assert_shown(backing, cases[i].shown);
        assert_shown(node, "n");
        g_assert_true(backing->read_only && !backing->monitor_owned);
        assert_filled(user, 0, 65536, cases[i].byte);
        info = node_info(node, false, NULL);
        g_assert_cmpstr(info->backing_file, ==, cases[i].shown);
        g_assert_cmpstr(info->image->backing_filename, ==, cases[i].name);
        g_assert_cmpstr(info->image->full_backing_filename, ==, cases[i].name);
        g_assert_cmpstr(info->image->backing_filename_format, ==, cases[i].format);
        g_assert_cmpstr(info->image->backing_image->filename, ==, cases[i].shown);
        block_device_info_free(info);
        backend_free(user);
        delete_node("n");
        g_assert_null(node_next(NULL)); /* the chain went with it */
    }
}

static void test_relative_names_begin_at_the_image(void)
{
    static const char *const files[] = {
        "'file':{'driver':'file','filename':'sub/rel'}",
        "'file':{'driver':'raw','file':{'driver':'file','filename':'sub/rel'}}",
        "'file':{'driver':'raw','offset':0,'file':{'driver':'file','filename':'sub/rel'}}",
        "'file':{'driver':'blkdebug','image':{'driver':'file','filename':'sub/rel'},"
        "'inject-error':[{'event':'l1_update'}]}",
    };

    cow_make("sub/rel", MiB, "base.raw", "raw");
    for (size_t i = 0; i < G_N_ELEMENTS(files); i++) {
        BlockNode *node = add_node("{'driver':'qcow2','node-name':'n',%s}", files[i]);
        BlockBackend *user = open_user(node, PERM_CONSISTENT_READ);
        g_autofree char *full = node_full_backing_name(node, NULL);

        g_assert_cmpstr(full, ==, "sub/base.raw");
        g_assert_cmpstr(node->backing_name, ==, "base.raw");
        assert_shown(node->backing->node, "sub/base.raw");
        assert_filled(user, 0, 4096, 'u');
        backend_free(user);
        delete_node("n");
    }
}

static void test_names_that_open_nothing(void)
{
    static const struct {
        const char *name, *format, *text;
    } cases[] = {
        { "missing.raw", "raw", "Could not open 'missing.raw': No such file or directory" },
        { "missing.raw", NULL, "Could not open 'missing.raw': No such file or directory" },
        { "sub", "raw", "'file' driver requires 'sub' to be a regular file" },
        { "base.raw", "foo", "Unknown driver 'foo'" },
        { "base.raw", "qcow2", "Image is not in qcow2 format" },
        { "with:colon.raw", "raw", "Unknown protocol 'with'" },
        { "nosuch:base.raw", NULL, "Unknown protocol 'nosuch'" },
        { "json:{\"driver\":\"nosuch\"}", NULL, "Unknown driver 'nosuch'" },
        { "json:[1]", NULL, "Invalid JSON object given" },
        { "json:{\"filename\":\"base.raw\"}", NULL, "Must specify either driver or file" },
        { "json:{\"filename\":\"base.raw\"}", "raw",
          "A block device must be specified for \"file\"" },
        { "json:{\"driver\":\"null-co\"}", "raw", "A block device must be specified for \"file\"" },
        { "json:{\"file\":\"somenode\"}", "raw",
          "Cannot find device='somenode' nor node-name='somenode'" },
        { "json:{\"file\":{\"filename\":{\"a\":\"b\"}}}", NULL, "Parameter 'driver' is missing" },
        { "json:{\"file\":{\"filename\":[1]}}", "raw", "Parameter 'file.driver' is missing" },
        { "json:{\"\":1}", NULL, "Must specify either driver or file" },
        { "json:{\"file\":{\"filename\":\"base.raw\",\"\":1}}", "raw",
          "Parameter 'file.' is unexpected" },
        { "json:{\".\":1,\"..a\":2}", "null-co", "Parameter '' is unexpected" },
        { "json:{bad", NULL,
          "Could not parse the JSON options: JSON parse error, invalid keyword 'bad'" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *text = g_strconcat("Could not open backing file: ", cases[i].text, NULL);

        cow_make("n", MiB, cases[i].name, cases[i].format);
        assert_text(add_image_error("n", ""), text);
        g_assert_null(node_next(NULL));
    }
}

static void test_chains_without_end_are_refused(void)
{
    cow_make("loop1", MiB, "loop2", "qcow2");
    cow_make("loop2", MiB, "loop1", "qcow2");
    assert_text(add_image_error("loop1", ",'read-only':true"),
                "Could not open backing file: Could not open backing file: Could not open backing "
                "file: Backing file 'loop1' creates an infinite loop.");
    g_assert_null(node_next(NULL));
}

static void test_options_flow_down_the_chain(void)
{
    BlockNode *node = add_image("top", ",'cache':{'direct':true,'no-flush':true}");
    BlockNode *mid = node->backing->node, *base = mid->backing->node;

    g_assert_false(node->read_only);
    g_assert_true(mid->read_only && mid->file->node->read_only);
    g_assert_true(base->read_only && base->file->node->read_only);
    g_assert_true(base->cache_direct && base->file->node->cache_no_flush);
    g_assert_cmpint(node->backing->role, ==, CHILD_COW);
    delete_node("n");
    node = add_image("mid", ",'read-only':true,'force-share':true");
    g_assert_true(node->backing->node->force_share);
    delete_node("n");
    cow_make("rw", MiB,
             "json:{\"file.filename\":\"base.raw\",\"read-only\":\"off\",\"node-name\":\"hallo\"}",
             "raw");
    node = add_image("rw", "");
    g_assert_cmpstr(node->backing->node->node_name, ==, "hallo");
    g_assert_false(node->backing->node->read_only);
    delete_node("n");
}

/* --- the option `backing` --- */

#define OTHER "{'driver':'raw','file':{'driver':'file','filename':'other.raw'}}"
#define SHOWN_OTHER                                                                                \
    "json:{\"backing\": {\"driver\": \"raw\", \"file\": {\"driver\": \"file\", \"filename\": "     \
    "\"other.raw\"}}, \"driver\": \"qcow2\", \"file\": {\"driver\": \"file\", \"filename\": "      \
    "\"mid\"}}"
#define SHOWN_NONE                                                                                 \
    "json:{\"backing\": null, \"driver\": \"qcow2\", \"file\": {\"driver\": \"file\", "            \
    "\"filename\": \"mid\"}}"

static void assert_image(const char *options, const char *shown, const char *backing, int byte)
{
    BlockNode *node = add_image("mid", options);
    BlockBackend *user = open_user(node, PERM_CONSISTENT_READ);
    BlockDeviceInfo *info = node_info(node, false, NULL);

    assert_shown(node, shown);
    g_assert_cmpstr(info->backing_file, ==, backing);
    g_assert_cmpint(info->backing_file_depth, ==, backing ? 1 : 0);
    g_assert_cmpstr(info->image->full_backing_filename, ==, "base.raw");
    g_assert_cmpstr(info->image->backing_filename, ==, "base.raw");
    g_assert_cmpstr(info->image->backing_filename_format, ==, "raw");
    assert_filled(user, 0, 4096, byte);
    block_device_info_free(info);
    backend_free(user);
    delete_node("n");
}

static void test_backing_files_given_as_options(void)
{
    assert_image("", "mid", "base.raw", 'b');
    assert_image(",'backing':null", SHOWN_NONE, NULL, 0);
    assert_image(",'backing':''", SHOWN_NONE, NULL, 0);
    assert_image(",'backing':" OTHER, SHOWN_OTHER, "other.raw", 'o');
    assert_image(",'backing':{'driver':'raw','file':{'driver':'file','filename':'base.raw'}}",
                 "mid", "base.raw", 'b');
    add_node("{'driver':'raw','node-name':'o','file':{'driver':'file','filename':'other.raw'}}");
    assert_image(",'backing':'o'", SHOWN_OTHER, "other.raw", 'o');
    delete_node("o");
    assert_text(add_image_error("mid", ",'backing':'nix'"),
                "Could not open backing file: Cannot find device='nix' nor node-name='nix'");
    assert_text(add_image_error("mid", ",'backing':{'driver':'file','filename':'nix'}"),
                "Could not open backing file: Could not open 'nix': No such file or directory");
    assert_text(add_image_error("plain", ",'backing':'n'"),
                "Making 'n' a backing child of 'n' would create a cycle");
    g_assert_null(node_next(NULL));
}

/* --- reading through --- */

static void test_writes_stay_in_the_top(void)
{
    BlockNode *node;
    BlockBackend *user;

    cow_make("fresh", 2 * MiB, "mid", "qcow2");
    node = add_image("fresh", "");
    user = open_user(node, RW);
    assert_filled(user, 0, MiB, 'b');
    assert_filled(user, MiB, MiB, 0); /* beyond the end of the shorter backing file */
    g_assert_cmpint(do_fill(user, 10000, 3, 'x'), ==, 0);
    g_assert_cmpint(do_fill(user, MiB - 100, 200, 'y'), ==, 0);
    assert_filled(user, 9000, 1000, 'b');
    assert_filled(user, 10000, 3, 'x');
    assert_filled(user, 10003, 1000, 'b');
    assert_filled(user, MiB - 100, 200, 'y');
    assert_filled(user, MiB + 100, 4096, 0);
    backend_free(user);
    delete_node("n");
    user = open_user(add_image("mid", ""), PERM_CONSISTENT_READ);
    assert_filled(user, 0, MiB, 'b');
    backend_free(user);
    delete_node("n");
}

static void assert_status(BlockBackend *user, int64_t offset, int64_t bytes, int flags,
                          int64_t length, int depth)
{
    BlockStatus status;

    g_assert_cmpint(do_status(user, offset, bytes, &status), ==, 0);
    g_assert_cmphex(status.flags & ~BLOCK_STATUS_OFFSET_VALID, ==, flags);
    g_assert_cmpint(status.bytes, ==, length);
    g_assert_cmpint(status.depth, ==, depth);
}

static void test_status_through_shorter_layers(void)
{
    const int data = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
    const int zero = BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED;
    BlockBackend *user;

    cow_make("low", MiB, "short.raw", "raw");
    cow_make("high", 2 * MiB, "low", "qcow2");
    user = open_user(add_image("high", ""), RW);
    g_assert_cmpint(do_fill(user, 4096, 1, 'x'), ==, 0);
    assert_status(user, 0, 4096, data, 4096, 2);
    assert_status(user, 4096, 4096, data, 4096, 0);
    assert_status(user, 65536, 4096, data, 512, 2); /* as far as the short one goes */
    assert_status(user, 66048, 512, zero, 512, 2);
    assert_status(user, MiB - 4096, 4096, zero, 4096, 2);
    assert_status(user, MiB, 4096, zero, 4096, 1);
    assert_status(user, 2 * MiB - 4096, 4096, zero | BLOCK_STATUS_EOF, 4096, 1);
    backend_free(user);
    delete_node("n");
    user = open_user(add_image("plain", ""), RW);
    assert_status(user, 0, 4096, BLOCK_STATUS_ZERO, 4096, 1);
    backend_free(user);
    delete_node("n");
}

/* What stands over an image as its file sees the whole chain. */
static void test_status_of_raw_over_a_chain(void)
{
    const int data = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
    const int zero = BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED;
    BlockBackend *user;

    cow_make("high", 2 * MiB, "short.raw", "raw");
    add_image("high", "");
    add_node("{'driver':'raw','node-name':'r','file':'n','offset':4096}");
    user = open_user(node_find("r"), RW);
    assert_status(user, 0, 4096, data, 4096, 0);
    assert_status(user, 61440, 4096, data, 512, 0); /* as far as the short one goes */
    assert_status(user, 61952, 512, zero, 512, 0);
    g_assert_cmpint(do_fill(user, MiB, 4096, 'x'), ==, 0);
    assert_status(user, MiB, 4096, data, 4096, 0);
    backend_free(user);
    delete_node("r");
    delete_node("n");

    add_image("plain", "");
    user = open_user(add_node("{'driver':'raw','node-name':'r','file':'n'}"), RW);
    assert_status(user, 0, 4096, zero, 4096, 0);
    backend_free(user);
    delete_node("r");
    delete_node("n");
}

/* --- blockdev-reopen --- */

static char *reopen_backing(const char *backing)
{
    return reopen_error("{'driver':'qcow2','node-name':'n','file':'f'%s%s}",
                        *backing ? ",'backing':" : "", backing);
}

static BlockNode *add_reopenable(const char *image, const char *more)
{
    add_node("{'driver':'file','node-name':'f','filename':'%s'}", image);
    add_node("{'driver':'raw','node-name':'o','file':{'driver':'file','filename':'other.raw'}}");
    return add_node("{'driver':'qcow2','node-name':'n','file':'f'%s}", more);
}

static void delete_reopenable(void)
{
    delete_node("n");
    delete_node("o");
    delete_node("f");
    g_assert_null(node_next(NULL));
}

static void test_the_backing_file_is_exchanged(void)
{
    BlockNode *node = add_reopenable("mid", "");
    BlockBackend *user = open_user(node, RW);

    assert_text(reopen_backing(""), "backing is missing for 'n'");
    assert_text(reopen_backing("'nix'"), "Cannot find device='' nor node-name='nix'");
    assert_text(reopen_backing("'n'"), "Making 'n' a backing child of 'n' would create a cycle");
    assert_filled(user, 0, 4096, 'b');

    assert_text(reopen_backing("'o'"), NULL);
    assert_filled(user, 0, 4096, 'o');
    assert_shown(node, SHOWN_OTHER);
    assert_text(reopen_backing(OTHER), "Cannot change the option 'backing.driver'");

    assert_text(reopen_backing("null"), NULL);
    g_assert_null(node->backing);
    assert_filled(user, 0, 4096, 0);
    assert_shown(node, SHOWN_NONE);
    assert_text(reopen_backing("null"), NULL);
    assert_text(reopen_backing(""), "backing is missing for 'n'");
    assert_text(reopen_backing(OTHER), "Cannot change the option 'backing.driver'");

    assert_text(reopen_backing("'o'"), NULL);
    assert_filled(user, 0, 4096, 'o');
    g_assert_cmpuint(node_find("o")->perm, ==, PERM_CONSISTENT_READ);
    backend_free(user);
    delete_reopenable();
}

static void test_what_was_opened_for_the_image_follows_it(void)
{
    BlockNode *node = add_reopenable("mid", "");

    g_assert_false(node->backing->node->cache_direct);
    assert_text(reopen_error("{'driver':'qcow2','node-name':'n','file':'f','cache':{'direct':true},"
                             "'backing':{'driver':'raw','file':{'driver':'file',"
                             "'filename':'base.raw'}}}"),
                NULL);
    g_assert_true(node->backing->node->cache_direct);
    g_assert_true(node->backing->node->file->node->cache_direct);
    g_assert_true(node->backing->node->read_only);
    assert_text(reopen_backing(OTHER), "Cannot change the option 'filename'");
    assert_text(reopen_backing("{'driver':'null-co'}"), "Cannot change the option 'driver'");
    assert_shown(node, "mid");
    delete_reopenable();
}

static void test_images_without_a_backing_file(void)
{
    BlockNode *node = add_reopenable("plain", "");

    assert_text(reopen_backing(""), NULL);
    assert_text(reopen_backing("null"), NULL);
    assert_shown(node, "plain");
    assert_text(reopen_backing("'o'"), NULL);
    g_assert_true(g_str_has_prefix(node->filename, "json:{\"backing\": {\"driver\": \"raw\""));
    assert_text(reopen_backing(""), "backing is missing for 'n'");
    assert_text(reopen_backing("null"), NULL);
    assert_text(reopen_backing(""), NULL);
    assert_shown(node, "plain");
    delete_reopenable();
}

/* A refusal by a later step leaves everything as it was. */
static void test_exchanges_are_taken_back(void)
{
    static const char *const backing[] = { "null", "'o'", "'o'" };
    static const char *const opened[] = { "", "", ",'backing':null" };

    for (size_t i = 0; i < G_N_ELEMENTS(backing); i++) {
        BlockNode *node = add_reopenable("mid", opened[i]);
        BlockNode *before = node->backing ? node->backing->node : NULL;
        BlockBackend *user = open_user(node, RW);
        g_autofree char *shown = g_strdup(node->filename);

        assert_text(reopen_error("{'driver':'qcow2','node-name':'n','file':'f','backing':%s,"
                                 "'force-share':true,'read-only':true}",
                                 backing[i]),
                    "Cannot change the option 'force-share'");
        g_assert_true((node->backing ? node->backing->node : NULL) == before);
        assert_shown(node, shown);
        assert_filled(user, 0, 4096, before ? 'b' : 0);
        /* Also one that comes from the permissions: nobody may write to the new backing file. */
        if (backing[i][0] == '\'') {
            BlockBackend *writer = open_user(node_find("o"), RW);

            g_assert_true(backend_set_perm(user, RW, PERM_ALL & ~PERM_WRITE, NULL));
            assert_text(reopen_backing(backing[i]),
                        "Permission conflict on node 'o': permissions 'write' are both required by "
                        "a test (uses node 'o' as 'root' child) and unshared by node 'n' (uses "
                        "node 'o' as 'backing' child).");
            g_assert_true((node->backing ? node->backing->node : NULL) == before);
            assert_shown(node, shown);
            backend_free(writer);
        }
        backend_free(user);
        delete_reopenable();
    }
}

int main(int argc, char **argv)
{
    int ret;

    io_harness_init(&argc, &argv, false);
    blkdebug_driver_register();
    cow_driver_register();
    make_images();
#define ADD(name) g_test_add_func("/backing/" #name, test_##name)
    ADD(names_in_headers);
    ADD(relative_names_begin_at_the_image);
    ADD(names_that_open_nothing);
    ADD(chains_without_end_are_refused);
    ADD(options_flow_down_the_chain);
    ADD(backing_files_given_as_options);
    ADD(writes_stay_in_the_top);
    ADD(status_through_shorter_layers);
    ADD(status_of_raw_over_a_chain);
    ADD(the_backing_file_is_exchanged);
    ADD(what_was_opened_for_the_image_follows_it);
    ADD(images_without_a_backing_file);
    ADD(exchanges_are_taken_back);
    ret = io_harness_run();
    return ret;
}
