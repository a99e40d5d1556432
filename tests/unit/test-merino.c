/* SPDX-License-Identifier: MIT */
/* The embedding API, as a program that has nothing but merino.h meets it. */
#include "merino/merino.h"

#include <errno.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <string.h>

#define MIB (1 << 20)

static char *folder;

/* Run a command in JSON with single quotes for double ones; returns the reply. */
static char *qmp(const char *format, ...) G_GNUC_PRINTF(1, 2);

static char *qmp(const char *format, ...)
{
    g_autofree char *request = NULL;
    va_list args;

    va_start(args, format);
    request = g_strdup_vprintf(format, args);
    va_end(args);
    return merino_qmp(g_strdelimit(request, "'", '"'));
}

#define qmp_ok(...)                                                                                \
    do {                                                                                           \
        char *reply_ = qmp(__VA_ARGS__);                                                           \
        g_assert_cmpstr(reply_, ==, "{\"return\": {}}");                                           \
        merino_free(reply_);                                                                       \
    } while (0)

static void wait_until_concluded(const char *job)
{
    bool concluded = false;

    while (!concluded) {
        char *reply = qmp("{'execute':'query-jobs'}");

        concluded = strstr(reply, "\"status\": \"concluded\"");
        merino_free(reply);
        if (!concluded) {
            merino_poll(true);
        }
    }
    qmp_ok("{'execute':'job-dismiss','arguments':{'id':'%s'}}", job);
}

static void create(const char *options)
{
    qmp_ok("{'execute':'blockdev-create','arguments':{'job-id':'make','options':%s}}", options);
    wait_until_concluded("make");
}

static void create_image(void)
{
    g_autofree char *file =
        g_strdup_printf("{'driver':'file','filename':'%s/image','size':0}", folder);

    create(file);
    qmp_ok("{'execute':'blockdev-add','arguments':{'driver':'file','node-name':'file',"
           "'filename':'%s/image'}}",
           folder);
    create("{'driver':'qcow2','file':'file','size':1048576}");
}

static void open_image(void)
{
    qmp_ok("{'execute':'blockdev-add','arguments':{'driver':'qcow2','node-name':'disk',"
           "'file':'file'}}");
}

static void delete_node(const char *name)
{
    qmp_ok("{'execute':'blockdev-del','arguments':{'node-name':'%s'}}", name);
}

static MerinoDisk *open_disk(bool writable)
{
    char *error = NULL;
    MerinoDisk *disk = merino_disk_open("disk", writable, &error);

    g_assert_cmpstr(error, ==, NULL);
    return disk;
}

static void assert_dirty(MerinoDisk *disk, const char *bitmap, int64_t offset, int64_t bytes)
{
    int64_t found_offset, found_bytes;
    char *error = NULL;

    g_assert_true(merino_disk_next_dirty(disk, bitmap, 0, &found_offset, &found_bytes, &error));
    g_assert_cmpint(found_offset, ==, offset);
    g_assert_cmpint(found_bytes, ==, bytes);
    g_assert_false(
        merino_disk_next_dirty(disk, bitmap, offset + bytes, &found_offset, &found_bytes, &error));
    g_assert_cmpstr(error, ==, NULL);
}

/* What was stored of a bitmap counts, although nobody has looked at it since the image was opened.
 */
static void test_stored_bitmaps_are_loaded(void)
{
    g_autofree char *bytes = g_strnfill(4096, 'x');
    MerinoDisk *disk;

    create_image();
    open_image();
    qmp_ok("{'execute':'block-dirty-bitmap-add','arguments':{'node':'disk','name':'stored',"
           "'persistent':true}}");
    disk = open_disk(true);
    g_assert_cmpint(merino_disk_write(disk, 3 * 65536, bytes, 4096), ==, 0);
    assert_dirty(disk, "stored", 3 * 65536, 65536);
    merino_disk_close(disk);
    delete_node("disk");

    open_image();
    disk = open_disk(false);
    assert_dirty(disk, "stored", 3 * 65536, 65536);
    merino_disk_close(disk);
    delete_node("disk");
    delete_node("file");
}

static void test_requests(void)
{
    uint8_t bytes[512] = { 1 }, read[512] = { 0 };
    MerinoDisk *disk;

    create_image();
    open_image();
    disk = open_disk(true);
    g_assert_cmpint(merino_disk_size(disk), ==, MIB);
    g_assert_cmpint(merino_disk_write(disk, 1000, bytes, sizeof(bytes)), ==, 0);
    g_assert_cmpint(merino_disk_flush(disk), ==, 0);
    g_assert_cmpint(merino_disk_read(disk, 1000, read, sizeof(read)), ==, 0);
    g_assert_cmpmem(read, sizeof(read), bytes, sizeof(bytes));
    g_assert_cmpint(merino_disk_write_zeroes(disk, 1000, 512), ==, 0);
    g_assert_cmpint(merino_disk_discard(disk, 0, 65536), ==, 0);
    g_assert_cmpint(merino_disk_read(disk, 1000, read, sizeof(read)), ==, 0);
    g_assert_cmpint(read[0], ==, 0);
    g_assert_cmpint(merino_disk_read(disk, MIB - 1, read, 2), ==, -EIO);
    g_assert_cmpint(merino_disk_read(disk, -1, read, 1), ==, -EIO);
    g_assert_cmpint(merino_disk_write_zeroes(disk, 0, -1), ==, -EINVAL);
    merino_disk_close(disk);

    disk = open_disk(false);
    g_assert_cmpint(merino_disk_write(disk, 0, bytes, sizeof(bytes)), ==, -EPERM);
    merino_disk_close(disk);
    delete_node("disk");
    delete_node("file");
}

static void test_errors_in_words(void)
{
    int64_t offset, bytes;
    char *error = NULL, *reply;
    MerinoDisk *disk;

    g_assert_false(merino_init(&error));
    g_assert_cmpstr(error, ==, "libmerino is already in use");
    merino_free(error);
    g_assert_null(merino_disk_open("disk", false, &error));
    g_assert_cmpstr(error, ==, "Cannot find device='' nor node-name='disk'");
    merino_free(error);
    reply = merino_qmp("{");
    g_assert_true(g_str_has_prefix(reply, "{\"error\": {\"class\": \"GenericError\""));
    merino_free(reply);

    qmp_ok("{'execute':'blockdev-add','arguments':{'driver':'null-co','node-name':'disk',"
           "'read-only':true}}");
    g_assert_null(merino_disk_open("disk", true, &error));
    g_assert_cmpstr(error, ==, "Block node is read-only");
    merino_free(error);
    disk = open_disk(false);
    g_assert_false(merino_disk_next_dirty(disk, "none", 0, &offset, &bytes, &error));
    g_assert_cmpstr(error, ==, "Dirty bitmap 'none' not found");
    merino_free(error);
    merino_disk_close(disk);
    delete_node("disk");
}

static void on_event(const char *event, void *opaque)
{
    GString *all = opaque;

    g_string_append(all, event);
}

static void test_events(void)
{
    GString *all = g_string_new(NULL);

    merino_set_event_handler(on_event, all);
    create_image();
    merino_set_event_handler(NULL, NULL);
    g_assert_nonnull(strstr(all->str, "JOB_STATUS_CHANGE"));
    g_string_free(all, TRUE);
    delete_node("file");
}

int main(int argc, char **argv)
{
    g_autofree char *image = NULL;
    int ret;

    g_test_init(&argc, &argv, NULL);
    folder = g_dir_make_tmp(NULL, NULL);
    image = g_build_filename(folder, "image", NULL);
    g_assert_true(merino_init(NULL));
    g_test_add_func("/merino/stored-bitmaps-are-loaded", test_stored_bitmaps_are_loaded);
    g_test_add_func("/merino/requests", test_requests);
    g_test_add_func("/merino/errors-in-words", test_errors_in_words);
    g_test_add_func("/merino/events", test_events);
    ret = g_test_run();
    merino_done();
    g_unlink(image);
    g_rmdir(folder);
    g_free(folder);
    return ret;
}
