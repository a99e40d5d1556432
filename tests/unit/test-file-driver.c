/* SPDX-License-Identifier: MIT */
/*
 * The drivers file and host_device on real files: bytes, holes, sizes, modes and image locks, the
 * latter also against QEMU's own tools where they are installed.
 */
#include "block/drivers/file.h"
#include "io-harness.h"
#include "util/size.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define RW (PERM_CONSISTENT_READ | PERM_WRITE)

static BlockNode *add_file(const char *path, const char *options)
{
    return add_node("{'driver':'file','node-name':'f','filename':'%s','discard':'unmap'%s}", path,
                    options);
}

/* --- words --- */

static void test_errors_of_opening(void)
{
    g_autofree char *none = temp_path("none");
    g_autofree char *folder = temp_path("folder");
    g_autofree char *pipe = temp_path("pipe");
    g_autofree char *file = temp_file("file", MiB);
    g_autofree char *text = NULL;

#define OPEN(driver, path, options)                                                                \
    add_node_error("{'driver':'" driver "','node-name':'f','filename':'%s'" options "}", path)

    run_shell("mkdir -p '%s'; test -p '%s' || mkfifo '%s'", folder, pipe, pipe);
    text = g_strdup_printf("Could not open '%s': No such file or directory", none);
    assert_text(OPEN("file", none, ""), text);
    g_free(text);
    text = g_strdup_printf("Could not open '%s': Is a directory", folder);
    assert_text(OPEN("file", folder, ""), text);
    g_free(text);
    text = g_strdup_printf("'file' driver requires '%s' to be a regular file", pipe);
    assert_text(OPEN("file", pipe, ""), text);
    g_free(text);
    text = g_strdup_printf("'host_device' driver requires '%s' to be either a character or block "
                           "device",
                           file);
    assert_text(OPEN("host_device", file, ""), text);
    assert_text(OPEN("file", "/dev/null", ""),
                "'file' driver requires '/dev/null' to be a regular file");
    assert_text(OPEN("file", "", ""), "The 'file' block driver requires a file name");
    assert_text(OPEN("file", file, ",'aio':'native'"),
                "aio=native was specified, but it requires cache.direct=on, which was not "
                "specified.");
    assert_text(OPEN("file", "/proc/version", ",'read-only':true,'cache':{'direct':true}"),
                "Could not open '/proc/version': filesystem does not support O_DIRECT");
}

/* --- bytes --- */

static void hammer_with_twin(const char *options)
{
    enum {
        SIZE = 1000000 /* not a multiple of a sector */
    };
    g_autofree char *path = temp_file("bytes", SIZE);
    g_autofree uint8_t *twin = g_malloc0(SIZE);
    g_autofree uint8_t *buf = g_malloc(SIZE);
    GRand *random = g_rand_new_with_seed(test_seed());
    BlockBackend *user = open_user(add_file(path, options), RW | PERM_RESIZE);

    g_assert_cmpint(backend_size(user), ==, align_up(SIZE, 512));
    for (int i = 0; i < 300; i++) {
        int64_t offset = g_rand_int_range(random, 0, SIZE);
        int64_t bytes = g_rand_int_range(random, 1, MIN(SIZE - offset, 200000) + 1);
        unsigned flags = g_rand_boolean(random) ? REQ_FUA : 0;
        int byte = g_rand_int_range(random, 0, 256);

        switch (g_rand_int_range(random, 0, 5)) {
        case 0:
            memset(twin + offset, byte, bytes);
            g_assert_cmpint(do_write(user, offset, bytes, twin + offset, flags), ==, 0);
            break;
        case 1:
            memset(twin + offset, 0, bytes);
            g_assert_cmpint(do_zero(user, offset, bytes, flags | (byte & 1 ? REQ_MAY_UNMAP : 0)),
                            ==, 0);
            break;
        case 2:
            g_assert_cmpint(do_discard(user, offset, bytes), ==, 0);
            g_assert_cmpint(do_read(user, offset, bytes, twin + offset), ==, 0); /* any bytes */
            break;
        case 3:
            g_assert_cmpint(do_flush(user), ==, 0);
            break;
        default:
            g_assert_cmpint(do_read(user, offset, bytes, buf), ==, 0);
            g_assert_cmpmem(buf, bytes, twin + offset, bytes);
        }
    }
    g_assert_cmpint(do_read(user, 0, SIZE, buf), ==, 0);
    g_assert_cmpmem(buf, SIZE, twin, SIZE);
    assert_filled(user, SIZE, align_up(SIZE, 512) - SIZE, 0); /* what the file lacks */
    g_rand_free(random);
    backend_free(user);
    delete_node("f");
}

static void test_bytes_through_the_page_cache(void)
{
    hammer_with_twin("");
}

static void test_bytes_past_the_page_cache(void)
{
    hammer_with_twin(",'cache':{'direct':true},'aio':'native'");
}

static BlockBackend *shared_user;

static void coroutine_fn write_own_blocks(int index, GRand *random)
{
    uint8_t buf[1024];

    for (int i = 0; i < 200; i++) {
        int64_t offset = g_rand_int_range(random, 0, 64) * 16384 + index * 1024;
        IoVector vec;

        iov_init_buf(&vec, buf, sizeof(buf));
        memset(buf, i, sizeof(buf));
        g_assert_cmpint(backend_co_pwritev(shared_user, offset, 1024, &vec, 0), ==, 0);
        memset(buf, 0, sizeof(buf));
        g_assert_cmpint(backend_co_preadv(shared_user, offset, 1024, &vec, 0), ==, 0);
        g_assert_true(buf[0] == (uint8_t)i && buf[1023] == (uint8_t)i);
        if (i % 50 == 0) {
            g_assert_cmpint(backend_co_flush(shared_user), ==, 0);
        }
    }
}

static void coroutine_fn prefetch_entry(void *opaque)
{
    int *ret = opaque;

    *ret = backend_co_preadv(shared_user, 4096, 65536, NULL, REQ_PREFETCH);
}

static void test_caches_are_filled(void)
{
    g_autofree char *path = temp_file("prefetch", MiB);
    int ret = -1;

    add_file(path, "");
    shared_user = open_user(add_node("{'driver':'raw','node-name':'r','file':'f'}"), RW);
    coroutine_run(prefetch_entry, &ret);
    g_assert_cmpint(ret, ==, 0);
    backend_free(shared_user);
    delete_node("r");
    delete_node("f");
}

static void test_several_loops_use_one_file(void)
{
    g_autofree char *path = temp_file("loops", MiB);

    shared_user = open_user(add_file(path, ""), RW);
    run_workers(16, 3, write_own_blocks);
    backend_free(shared_user);
    delete_node("f");
}

/* --- holes --- */

static void assert_extent(BlockBackend *user, int64_t offset, int flag, int64_t bytes)
{
    BlockStatus status;

    g_assert_cmpint(do_status(user, offset, MiB - offset, &status), ==, 0);
    g_assert_cmpint(status.flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO), ==, flag);
    g_assert_cmpint(status.bytes, ==, bytes);
    g_assert_cmpint(status.map, ==, offset);
}

static void test_holes_are_told_and_never_for_data(void)
{
    g_autofree char *path = temp_file("holes", MiB);
    BlockNode *node = add_file(path, "");
    BlockBackend *user = open_user(node, RW);

    assert_extent(user, 0, BLOCK_STATUS_ZERO, MiB);
    do_fill(user, 65536, 65536, 1);
    assert_extent(user, 0, BLOCK_STATUS_ZERO, 65536);
    assert_extent(user, 65536, BLOCK_STATUS_DATA, 65536);
    assert_extent(user, 65536 + 100, BLOCK_STATUS_DATA, 65536 - 100); /* as remembered */
    assert_extent(user, 131072, BLOCK_STATUS_ZERO, MiB - 131072);
    do_fill(user, 131072, 65536, 1);
    assert_extent(user, 131072, BLOCK_STATUS_DATA, 65536);
    assert_extent(user, 65536, BLOCK_STATUS_DATA, 131072);
    g_assert_cmpint(do_discard(user, 65536, 65536), ==, 0);
    assert_extent(user, 65536, BLOCK_STATUS_ZERO, 65536);
    g_assert_cmpint(do_zero(user, 131072, 65536, REQ_MAY_UNMAP | REQ_NO_FALLBACK), ==, 0);
    assert_extent(user, 131072, BLOCK_STATUS_ZERO, MiB - 131072);
    g_assert_cmpint(node_allocated_size(node), ==, 0);
    backend_free(user);
    delete_node("f");
}

/* The last block of a file may be of a few bytes only. */
static void test_status_is_of_whole_blocks(void)
{
    g_autofree char *path = temp_path("odd");
    g_autofree char *bytes = g_strnfill(5000, 'x');
    BlockNode *node;
    BlockBackend *user;

    g_assert_true(g_file_set_contents(path, bytes, 5000, NULL));
    node = add_file(path, ",'cache':{'direct':true},'read-only':true");
    user = open_user(node, PERM_CONSISTENT_READ);
    g_assert_cmpint(node_size(node), ==, 5120);
    for (int64_t at = 0; at < 5120; at += 50) {
        BlockStatus status;

        g_assert_cmpint(do_status(user, at, 5120 - at, &status), ==, 0);
        g_assert_true(status.flags & BLOCK_STATUS_DATA);
        g_assert_cmpint(status.bytes, ==, 5120 - at);
    }
    backend_free(user);
    delete_node("f");
}

/* --- sizes --- */

static void test_a_file_is_resized(void)
{
    g_autofree char *path = temp_file("size", 65536);
    BlockNode *node = add_file(path, "");
    GError *error = NULL;
    struct stat st;

    g_assert_true(node_resize(node, 131072, &error));
    g_assert_no_error(error);
    g_assert_cmpint(node_size(node), ==, 131072);
    g_assert_true(node_resize(node, 1000, &error));
    g_assert_cmpint(node_size(node), ==, 1024);
    g_assert_cmpint(stat(path, &st), ==, 0);
    g_assert_cmpint(st.st_size, ==, 1000);
    delete_node("f");
}

/* Whatever the file's size was before. */
static void test_a_direct_file_is_resized(void)
{
    static const PreallocMode modes[] = { PREALLOC_MODE_OFF, PREALLOC_MODE_FALLOC,
                                          PREALLOC_MODE_FULL };
    static const int64_t sizes[] = { 0, 1000, 4096 };

    for (size_t i = 0; i < G_N_ELEMENTS(modes) * G_N_ELEMENTS(sizes); i++) {
        int64_t old_size = sizes[i / G_N_ELEMENTS(modes)];
        g_autofree char *path = temp_file("direct", old_size);
        BlockNode *node = add_file(path, ",'cache':{'direct':true}");
        BlockBackend *user;
        GError *error = NULL;

        node_resize_preallocated(node, 300000, modes[i % G_N_ELEMENTS(modes)], &error);
        g_assert_no_error(error);
        g_assert_cmpint(node_size(node), ==, 300032);
        g_assert_true(fcntl(((FileState *)node->state)->fd, F_GETFL) & O_DIRECT);
        user = open_user(node, RW | PERM_RESIZE);
        assert_filled(user, 0, 300032, 0);
        g_assert_cmpint(do_fill(user, 100, 10000, 5), ==, 0);
        assert_filled(user, 100, 10000, 5);
        backend_free(user);
        delete_node("f");
    }
}

static void test_direct_writes_do_not_lengthen_a_file_unasked(void)
{
    g_autofree char *path = temp_file("tail", 4096 + 512);
    BlockNode *node = add_file(path, ",'cache':{'direct':true}");
    BlockBackend *user = backend_new("a test", RW, PERM_ALL);
    GError *error = NULL;
    bool ok = backend_attach(user, node, &error);

    if (node->limits.request_alignment <= 512) {
        g_assert_true(ok);
    } else {
        g_assert_false(ok);
        g_assert_cmpstr(error->message, ==,
                        "Cannot get 'write' permission without 'resize': Image size is not a "
                        "multiple of request alignment");
        g_clear_error(&error);
    }
    backend_free(user);
    delete_node("f");
}

/* --- modes --- */

static int access_mode(BlockNode *node)
{
    return fcntl(((FileState *)node->state)->fd, F_GETFL) & (O_ACCMODE | O_DIRECT);
}

static void test_auto_read_only_opens_for_writers(void)
{
    g_autofree char *path = temp_file("auto", MiB);
    BlockNode *node = add_file(path, ",'auto-read-only':true");
    BlockBackend *user;

    g_assert_cmpint(access_mode(node), ==, O_RDONLY);
    user = open_user(node, RW);
    g_assert_cmpint(access_mode(node), ==, O_RDWR);
    g_assert_cmpint(do_fill(user, 0, 512, 1), ==, 0);
    backend_free(user);
    g_assert_cmpint(access_mode(node), ==, O_RDONLY);
    delete_node("f");
}

static void test_reopening(void)
{
    g_autofree char *path = temp_file("reopen", MiB);
    BlockNode *node = add_file(path, ",'read-only':true");
    BlockBackend *user;

#define REOPEN(options)                                                                            \
    reopen_error("{'driver':'file','node-name':'f','filename':'%s'" options "}", path)

    g_assert_cmpint(access_mode(node), ==, O_RDONLY);
    assert_text(REOPEN(""), NULL);
    g_assert_cmpint(access_mode(node), ==, O_RDWR);
    user = open_user(node, RW);
    g_assert_cmpint(do_fill(user, 0, 512, 1), ==, 0);
    assert_text(REOPEN(",'cache':{'direct':true}"), NULL);
    g_assert_cmpint(access_mode(node), ==, O_RDWR | O_DIRECT);
    g_assert_cmpint(do_fill(user, 1, 512, 2), ==, 0);
    assert_filled(user, 1, 512, 2);
    assert_text(REOPEN(",'read-only':true"),
                "Read-only block node 'f' cannot support read-write users");
    g_assert_cmpint(access_mode(node), ==, O_RDWR | O_DIRECT); /* as before */
    assert_text(REOPEN(",'locking':'off'"), "Cannot change the option 'locking'");
    assert_text(REOPEN(",'aio':'io_uring'"), "Cannot change the option 'aio'");
    assert_text(REOPEN(""), NULL);
    assert_filled(user, 0, 1, 1);
    assert_filled(user, 1, 512, 2);
    backend_free(user);
    assert_text(REOPEN(",'read-only':true"), NULL);
    g_assert_cmpint(access_mode(node), ==, O_RDONLY);
    delete_node("f");
}

/* --- locks --- */

/* Which of the bytes 100 to 103 (bits 0 to 3) and 200 to 203 (bits 4 to 7) others have locked. */
static unsigned locked_bytes(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    unsigned bits = 0;

    g_assert_cmpint(fd, >=, 0);
    for (int i = 0; i < 8; i++) {
        struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };

        lock.l_start = i < 4 ? 100 + i : 200 + i - 4;
        g_assert_cmpint(fcntl(fd, F_OFD_GETLK, &lock), ==, 0);
        bits |= lock.l_type == F_UNLCK ? 0 : 1u << i;
    }
    close(fd);
    return bits;
}

static unsigned expected_bytes(unsigned perm, unsigned shared)
{
    return perm | (~shared & PERM_ALL) << 4;
}

static void test_locks_say_what_is_used_and_not_shared(void)
{
    g_autofree char *path = temp_file("locks", MiB);
    BlockNode *node = add_file(path, "");

    g_assert_cmpint(locked_bytes(path), ==, 0);
    for (unsigned perm = 0; perm <= PERM_ALL; perm++) {
        for (unsigned shared = 0; shared <= PERM_ALL; shared++) {
            BlockBackend *user = backend_new("a test", perm, shared);

            g_assert_true(backend_attach(user, node, NULL));
            g_assert_cmpint(locked_bytes(path), ==, expected_bytes(perm, shared));
            g_assert_true(backend_set_perm(user, 0, PERM_ALL & ~shared, NULL));
            g_assert_cmpint(locked_bytes(path), ==, expected_bytes(0, PERM_ALL & ~shared));
            backend_free(user);
            g_assert_cmpint(locked_bytes(path), ==, 0);
        }
    }
    delete_node("f");
}

static void test_no_locks_where_locking_is_off(void)
{
    g_autofree char *path = temp_file("unlocked", MiB);
    BlockBackend *user = backend_new("a test", RW, 0);

    g_assert_true(backend_attach(user, add_file(path, ",'locking':'off'"), NULL));
    g_assert_cmpint(locked_bytes(path), ==, 0);
    backend_free(user);
    delete_node("f");
}

static void test_locks_follow_the_descriptor(void)
{
    g_autofree char *path = temp_file("follow", MiB);
    BlockNode *node = add_file(path, ",'auto-read-only':true");
    BlockBackend *user = backend_new("a test", PERM_CONSISTENT_READ, PERM_CONSISTENT_READ);

    g_assert_true(backend_attach(user, node, NULL));
    g_assert_true(backend_set_perm(user, RW, PERM_CONSISTENT_READ, NULL));
    g_assert_cmpint(access_mode(node), ==, O_RDWR);
    g_assert_cmpint(locked_bytes(path), ==, expected_bytes(RW, PERM_CONSISTENT_READ));
    assert_text(REOPEN(",'auto-read-only':true,'cache':{'direct':true}"), NULL);
    g_assert_cmpint(access_mode(node), ==, O_RDWR | O_DIRECT);
    g_assert_cmpint(locked_bytes(path), ==, expected_bytes(RW, PERM_CONSISTENT_READ));
    backend_free(user);
    delete_node("f");
}

static char *attach_error(BlockBackend *user, BlockNode *node)
{
    GError *error = NULL;
    char *message;

    g_assert_false(backend_attach(user, node, &error));
    message = g_strdup(error->message);
    g_error_free(error);
    return message;
}

static void test_contradictions_are_refused(void)
{
    g_autofree char *path = temp_file("conflict", MiB);
    g_autofree char *hint = g_strdup_printf(
        "Failed to get \"write\" lock\nIs another process using the image [%s]?", path);
    g_autofree char *shared_hint = g_strdup_printf(
        "Failed to get shared \"write\" lock\nIs another process using the image [%s]?", path);
    BlockNode *first = add_file(path, "");
    BlockNode *second = add_node("{'driver':'file','node-name':'g','filename':'%s'}", path);
    BlockBackend *holder = backend_new("a test", RW, PERM_ALL & ~PERM_WRITE);
    BlockBackend *writer = backend_new("a test", RW, PERM_ALL);
    BlockBackend *reader = backend_new("a test", PERM_CONSISTENT_READ, PERM_ALL & ~PERM_WRITE);

    g_assert_true(backend_attach(holder, first, NULL));
    assert_text(attach_error(writer, second), hint);
    assert_text(attach_error(reader, second), shared_hint);
    g_assert_cmpint(locked_bytes(path), ==, expected_bytes(RW, PERM_ALL & ~PERM_WRITE));
    g_assert_true(backend_set_perm(holder, RW, PERM_ALL, NULL));
    g_assert_true(backend_attach(writer, second, NULL));
    backend_free(holder);
    backend_free(writer);
    backend_free(reader);
    delete_node("g");
    delete_node("f");
}

/* --- against QEMU --- */

static bool have_qemu_io(void)
{
    g_autofree char *program = g_find_program_in_path("qemu-io");

    if (!program) {
        g_test_skip("qemu-io is not installed");
    }
    return program != NULL;
}

/* Its standard error; NULL when it succeeded. */
static char *qemu_io_error(const char *path, const char *options)
{
    g_autofree char *command = g_strdup_printf("qemu-io %s '%s'", options, path);
    g_autofree char *out = NULL;
    char *err = NULL;
    int status = 0;

    g_assert_true(g_spawn_command_line_sync(command, &out, &err, &status, NULL));
    if (status == 0) {
        g_clear_pointer(&err, g_free);
    }
    return err;
}

static void test_qemu_respects_our_locks(void)
{
    g_autofree char *path = temp_file("qemu-respects", MiB);
    g_autofree char *text = g_strdup_printf("qemu-io: can't open device %s: Failed to get "
                                            "\"write\" lock\nIs another process using the image "
                                            "[%s]?\n",
                                            path, path);
    BlockBackend *user;

    if (!have_qemu_io()) {
        return;
    }
    user = backend_new("a test", RW, PERM_ALL & ~PERM_WRITE);
    g_assert_true(backend_attach(user, add_file(path, ""), NULL));
    assert_text(qemu_io_error(path, "-f raw -c 'write 0 512'"), text);
    assert_text(qemu_io_error(path, "-r -f raw -c 'read 0 512'"), NULL);
    g_assert_true(backend_set_perm(user, RW, PERM_ALL, NULL));
    assert_text(qemu_io_error(path, "-f raw -c 'write 0 512'"), NULL);
    backend_free(user);
    delete_node("f");
}

/* A qemu-io that has the image open until its input ends. */
static GPid start_qemu_io(const char *path, int *ret_input, int *ret_output)
{
    const char *argv[] = { "qemu-io", path, NULL };
    char buf[256];
    GPid pid;

    g_assert_true(g_spawn_async_with_pipes(NULL, (char **)argv, NULL,
                                           G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD, NULL,
                                           NULL, &pid, ret_input, ret_output, NULL, NULL));
    g_assert_cmpint(write(*ret_input, "length\n", 7), ==, 7);
    for (GString *seen = g_string_new(NULL);;) { /* it has answered, so it has opened */
        ssize_t n = read(*ret_output, buf, sizeof(buf));

        g_assert_cmpint(n, >, 0);
        g_string_append_len(seen, buf, n);
        if (strstr(seen->str, "MiB")) {
            g_string_free(seen, TRUE);
            return pid;
        }
    }
}

static void test_we_respect_qemus_locks(void)
{
    g_autofree char *path = temp_path("q.qcow2");
    g_autofree char *text = g_strdup_printf(
        "Failed to get \"write\" lock\nIs another process using the image [%s]?", path);
    BlockBackend *user;
    BlockNode *node;
    int input, output;
    GPid pid;

    if (!have_qemu_io()) {
        return;
    }
    run_shell("qemu-img create -q -f qcow2 '%s' 1M", path);
    pid = start_qemu_io(path, &input, &output);
    g_assert_cmpint(locked_bytes(path), ==,
                    expected_bytes(RW | PERM_RESIZE, PERM_ALL & ~(PERM_WRITE | PERM_RESIZE)));
    node = add_file(path, "");
    user = backend_new("a test", RW, PERM_ALL);
    assert_text(attach_error(user, node), text);
    backend_free(user);
    user = open_user(node, PERM_CONSISTENT_READ); /* a reader who bears writers */
    backend_free(user);
    close(input);
    g_assert_cmpint(waitpid(pid, NULL, 0), ==, pid);
    g_spawn_close_pid(pid);
    close(output);
    user = open_user(node, RW);
    backend_free(user);
    delete_node("f");
}

/* --- devices --- */

static char *loop_device(const char *path, const char *options)
{
    g_autofree char *command = g_strdup_printf("losetup -f --show %s '%s'", options, path);
    char *out = NULL;
    int status = 1;

    if (geteuid() != 0 || !g_spawn_command_line_sync(command, &out, NULL, &status, NULL) ||
        status != 0) {
        g_free(out);
        g_test_skip("no loop device to be had");
        return NULL;
    }
    return g_strstrip(out);
}

static void test_devices(void)
{
    g_autofree char *path = temp_file("device", 4 * MiB);
    g_autofree char *device = loop_device(path, "");
    BlockBackend *user;
    BlockStatus status;
    GError *error = NULL;
    BlockNode *node;

    if (!device) {
        return;
    }
    for (int direct = 0; direct < 2; direct++) {
        node = add_node("{'driver':'host_device','node-name':'h','filename':'%s',"
                        "'discard':'unmap','cache':{'direct':%s}}",
                        device, direct ? "true" : "false");
        user = open_user(node, RW);
        g_assert_cmpint(backend_size(user), ==, 4 * MiB);
        g_assert_cmpint(do_fill(user, 1000, 100000, 7), ==, 0);
        g_assert_cmpint(do_zero(user, 1001, 50000, REQ_MAY_UNMAP), ==, 0);
        g_assert_cmpint(do_zero(user, 65536, 4096, 0), ==, 0);
        assert_filled(user, 1000, 1, 7);
        assert_filled(user, 1001, 50000, 0);
        assert_filled(user, 65536, 4096, 0);
        assert_filled(user, 65536 + 4096, 1000, 7);
        g_assert_cmpint(do_discard(user, 0, MiB), ==, 0);
        g_assert_cmpint(do_flush(user), ==, 0);
        g_assert_cmpint(do_status(user, 0, MiB, &status), ==, 0);
        g_assert_true(status.flags & BLOCK_STATUS_DATA);
        backend_free(user);
        g_assert_false(node_resize(node, 8 * MiB, &error));
        g_assert_cmpstr(error->message, ==, "Cannot grow device files");
        g_clear_error(&error);
        delete_node("h");
    }
    run_shell("losetup -d '%s'", device);
}

static void test_read_only_devices(void)
{
    g_autofree char *path = temp_file("ro-device", MiB);
    g_autofree char *device = loop_device(path, "-r");

    if (!device) {
        return;
    }
    assert_text(add_node_error("{'driver':'host_device','node-name':'h','filename':'%s'}", device),
                "The device is not writable: Permission denied");
    add_node("{'driver':'host_device','node-name':'h','filename':'%s','read-only':true}", device);
    delete_node("h");
    run_shell("losetup -d '%s'", device);
}

#define ADD(name) g_test_add_func("/file/" #name, test_##name)

int main(int argc, char **argv)
{
    io_harness_init(&argc, &argv, false);
    ADD(errors_of_opening);
    ADD(bytes_through_the_page_cache);
    ADD(bytes_past_the_page_cache);
    ADD(caches_are_filled);
    ADD(several_loops_use_one_file);
    ADD(holes_are_told_and_never_for_data);
    ADD(status_is_of_whole_blocks);
    ADD(a_file_is_resized);
    ADD(a_direct_file_is_resized);
    ADD(direct_writes_do_not_lengthen_a_file_unasked);
    ADD(auto_read_only_opens_for_writers);
    ADD(reopening);
    ADD(locks_say_what_is_used_and_not_shared);
    ADD(no_locks_where_locking_is_off);
    ADD(locks_follow_the_descriptor);
    ADD(contradictions_are_refused);
    ADD(qemu_respects_our_locks);
    ADD(we_respect_qemus_locks);
    ADD(devices);
    ADD(read_only_devices);
    return io_harness_run();
}
