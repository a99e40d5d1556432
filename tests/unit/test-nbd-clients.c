/* SPDX-License-Identifier: MIT */
/*
 * Clients that ask much, go away, say nothing or never listen: on the main loop and on an I/O
 * thread. After each of them the export works, and can be deleted.
 */
#include "block/export/nbd/transmission.h"
#include "nbd-harness.h"
#include "util/size.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SIZE (4 * MiB)

static BlockNode *disk;
static MemoryDisk *memory;

static void set_up_with(gconstpointer iothread, NbdServerOptions options)
{
    disk = add_node("{'driver':'null-co','node-name':'d','size':%" G_GINT64_FORMAT "}", SIZE);
    memory = memory_disk(disk);
    options.has_max_connections = true;
    options.has_handshake_max_seconds = true;
    start_server_with(&options);
    add_export("{'type':'nbd','id':'e','node-name':'d','writable':true%s}",
               iothread ? ",'iothread':'io'" : "");
}

static void set_up(gconstpointer iothread)
{
    set_up_with(iothread, (NbdServerOptions){ 0 });
}

static void open_client(Client *client)
{
    client_open(client, true, false);
    client_go(client, "d", NULL);
}

/* A new client is served, and nobody else holds the export any more. */
static void check_health(void)
{
    Client client;
    char byte;

    open_client(&client);
    client_read(&client, 0, 0, 1, &byte);
    client_close(&client);
    run_main_until(atomic_load(&export_find("e")->refs) == 1);
}

static void tear_down(void)
{
    check_health();
    g_assert_null(delete_export_error("e", BLOCK_EXPORT_REMOVE_MODE_SAFE));
    stop_server();
    delete_node("d");
}

static int held_now(void)
{
    int held;

    g_mutex_lock(&memory->lock);
    held = memory->held;
    g_mutex_unlock(&memory->lock);
    return held;
}

/* --- many at a time --- */

/* As many as the limit are at work together; one more waits for its turn; all are answered. */
static void test_in_flight(gconstpointer iothread)
{
    const unsigned n = NBD_DEFAULT_REQUESTS + 20;
    g_autofree bool *seen = g_new0(bool, n);
    Client client;

    set_up(iothread);
    open_client(&client);
    memory_disk_hold(memory, false, true);
    for (unsigned i = 0; i < n; i++) {
        client_request(&client, NBD_CMD_READ, NBD_CMD_FLAG_DF, i, i * 512, 512);
    }
    run_main_until(held_now() == NBD_DEFAULT_REQUESTS);
    for (int i = 0; i < 100; i++) {
        run_main_once();
    }
    g_assert_cmpint(held_now(), ==, NBD_DEFAULT_REQUESTS);
    memory_disk_hold(memory, false, false);
    for (unsigned i = 0; i < n; i++) {
        Reply reply;

        client_reply(&client, 0, &reply);
        g_assert_cmpuint(reply.cookie, <, n);
        g_assert_false(seen[reply.cookie]);
        seen[reply.cookie] = true;
        reply_done(&reply);
    }
    client_close(&client);
    tear_down();
}

static void check_bytes_in_flight(uint16_t command)
{
    const int most = NBD_DEFAULT_REQUEST_MEMORY / (4 * MiB);
    Client client;

    open_client(&client);
    memory_disk_hold(memory, false, true);
    for (int i = 0; i < most + 4; i++) {
        client_request(&client, command, 0, 1, 0, 4 * MiB);
    }
    run_main_until(held_now() == most);
    for (int i = 0; i < 100; i++) {
        run_main_once();
    }
    g_assert_cmpint(held_now(), ==, most);
    memory_disk_hold(memory, false, false);
    for (int i = 0; i < most + 4; i++) {
        Reply reply;

        client_reply(&client, 0, &reply);
        g_assert_cmpuint(reply.error, ==, 0);
        reply_done(&reply);
    }
    client_close(&client);
}

/* The memory that a client's requests may hold is a limit, too; also the host's, for its cache. */
static void test_bytes_in_flight(gconstpointer iothread)
{
    set_up(iothread);
    disk->limits.read_flags = REQ_PREFETCH;
    check_bytes_in_flight(NBD_CMD_READ);
    check_bytes_in_flight(NBD_CMD_CACHE);
    tear_down();
}

/* Ask for `n` pieces of so many bytes, and see that `most` are at work together. */
static void check_most(unsigned n, uint32_t bytes, int most)
{
    Client client;

    open_client(&client);
    memory_disk_hold(memory, false, true);
    for (unsigned i = 0; i < n; i++) {
        client_request(&client, NBD_CMD_READ, NBD_CMD_FLAG_DF, i, 0, bytes);
    }
    run_main_until(held_now() == most);
    for (int i = 0; i < 100; i++) {
        run_main_once();
    }
    g_assert_cmpint(held_now(), ==, most);
    memory_disk_hold(memory, false, false);
    for (unsigned i = 0; i < n; i++) {
        Reply reply;

        client_reply(&client, 0, &reply);
        g_assert_cmpuint(reply.error, ==, 0);
        reply_done(&reply);
    }
    client_close(&client);
}

/* Both limits are the server's to choose. A request that is larger than all goes alone. */
static void test_limits(gconstpointer iothread)
{
    NbdServerOptions few = { .has_max_requests = true, .max_requests = 3 };
    NbdServerOptions small = { .has_max_request_memory = true, .max_request_memory = MiB };
    NbdServerOptions many = { .has_max_requests = true, .max_requests = 1000 };

    set_up_with(iothread, few);
    check_most(20, 512, 3);
    tear_down();
    set_up_with(iothread, small);
    check_most(20, 128 * KiB, 8);
    check_most(4, 2 * MiB, 1);
    tear_down();
    set_up_with(iothread, many);
    check_most(600, 512, 600);
    tear_down();
}

/* All clients together have a limit, too, beside one request of each. */
static void test_limit_of_all(gconstpointer iothread)
{
    const unsigned before = nbd_requests_of_all, n = 30;
    Client clients[3];

    set_up(iothread);
    nbd_requests_of_all = 10;
    memory_disk_hold(memory, false, true);
    for (size_t i = 0; i < G_N_ELEMENTS(clients); i++) {
        open_client(&clients[i]);
        for (unsigned k = 0; k < n; k++) {
            client_request(&clients[i], NBD_CMD_READ, NBD_CMD_FLAG_DF, k, 0, 512);
        }
    }
    run_main_until(held_now() == 13);
    for (int i = 0; i < 100; i++) {
        run_main_once();
    }
    g_assert_cmpint(held_now(), ==, 13);
    memory_disk_hold(memory, false, false);
    for (size_t i = 0; i < G_N_ELEMENTS(clients); i++) {
        for (unsigned k = 0; k < n; k++) {
            Reply reply;

            client_reply(&clients[i], 0, &reply);
            g_assert_cmpuint(reply.error, ==, 0);
            reply_done(&reply);
        }
        client_close(&clients[i]);
    }
    tear_down();
    nbd_requests_of_all = before;
}

static void check_refused(NbdServerOptions options, const char *expected)
{
    SocketAddress address = { .type = SOCKET_ADDRESS_TYPE_UNIX, .u.q_unix.path = (char *)"x" };
    g_autoptr(GError) error = NULL;

    options.addr = &address;
    g_assert_false(nbd_server_start(&options, &error));
    g_assert_cmpstr(error->message, ==, expected);
    g_assert_false(g_file_test("x", G_FILE_TEST_EXISTS));
}

static void test_wrong_limits(void)
{
    const char *requests = "Parameter 'max-requests' expects a value from 1 to 65536";
    const char *mode = "Parameter 'socket-mode' expects octal digits up to 0777";

    check_refused((NbdServerOptions){ .has_max_requests = true }, requests);
    check_refused((NbdServerOptions){ .has_max_requests = true, .max_requests = 65537 }, requests);
    check_refused((NbdServerOptions){ .has_max_request_memory = true, .max_request_memory = 4096 },
                  "Parameter 'max-request-memory' expects a value of at least 1048576");
    check_refused((NbdServerOptions){ .socket_mode = (char *)"rw" }, mode);
    check_refused((NbdServerOptions){ .socket_mode = (char *)"1777" }, mode);
    check_refused((NbdServerOptions){ .socket_mode = (char *)"-1" }, mode);
    check_refused((NbdServerOptions){ .socket_mode = (char *)"" }, mode);
}

/* A socket that listens already, as of a service manager, listens on when the server is gone. */
static void test_given_socket(void)
{
    struct sockaddr_un at = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0), client;
    g_autofree char *text = g_strdup_printf("%d", dup(fd));
    SocketAddress address = { .type = SOCKET_ADDRESS_TYPE_FD, .u.fd.str = text };
    NbdServerOptions options = { .addr = &address };
    socklen_t length = sizeof(at);

    g_assert_cmpint(bind(fd, (struct sockaddr *)&at, sizeof(at.sun_family)), ==, 0);
    g_assert_cmpint(listen(fd, 5), ==, 0);
    g_assert_cmpint(getsockname(fd, (struct sockaddr *)&at, &length), ==, 0);
    for (int i = 0; i < 2; i++) {
        char greeting[NBD_GREETING_BYTES];

        client = socket(AF_UNIX, SOCK_STREAM, 0);
        g_assert_cmpint(connect(client, (struct sockaddr *)&at, length), ==, 0);
        g_assert_true(nbd_server_start(&options, NULL));
        run_main_until(recv(client, greeting, sizeof(greeting), MSG_DONTWAIT) > 0);
        stop_server();
        close(client);
        g_free(text);
        text = g_strdup_printf("%d", dup(fd));
        address.u.fd.str = text;
    }
    close(atoi(text));
    close(fd);
}

/* Requests in pieces of all sizes, whatever the socket makes of them. */
static void test_torn_stream(gconstpointer iothread)
{
    g_autoptr(GByteArray) stream = g_byte_array_new();
    GRand *random = g_rand_new_with_seed(test_seed());
    const unsigned n = 400;
    Client client;

    set_up(iothread);
    open_client(&client);
    for (unsigned i = 0; i < n; i++) {
        uint8_t header[NBD_EXTENDED_REQUEST_BYTES];
        g_autofree char *payload = g_malloc(70000);
        uint32_t bytes = (uint32_t)g_rand_int_range(random, 1, i % 10 ? 600 : 70000);

        memset(payload, (int)(i & 255), bytes);
        g_byte_array_append(
            stream, header,
            (guint)request_header(&client, header, NBD_CMD_WRITE, 0, i, (uint64_t)i * 8192, bytes));
        g_byte_array_append(stream, (uint8_t *)payload, bytes);
    }
    for (guint sent = 0; sent < stream->len;) {
        guint most = (guint)g_rand_int_range(random, 1, 100000);
        guint piece = MIN(most, stream->len - sent);

        client_send(&client, stream->data + sent, piece);
        sent += piece;
        run_main_once();
    }
    for (unsigned i = 0; i < n; i++) {
        Reply reply;

        client_reply(&client, 0, &reply);
        g_assert_cmpuint(reply.error, ==, 0);
        reply_done(&reply);
    }
    for (unsigned i = 0; i < n; i++) {
        g_assert_cmpint(memory->data[i * 8192], ==, i & 255);
    }
    client_close(&client);
    g_rand_free(random);
    tear_down();
}

/* What stands behind a write is looked at before its time: offsets that no disk has, and a header
 * that is none. Each is answered in its turn, and only what was written is marked. */
static void test_behind_a_write(gconstpointer iothread)
{
    static const struct {
        uint64_t offset;
        uint32_t error;
    } writes[] = { { 4096, 0 },
                   { UINT64_MAX, NBD_ENOSPC },
                   { INT64_MAX, NBD_ENOSPC },
                   { SIZE - 256, NBD_ENOSPC },
                   { 65536 + 512, 0 } };
    BitmapAddOptions options = { .name = "b", .granularity = 4096 };
    g_autoptr(GByteArray) stream = g_byte_array_new();
    uint8_t header[NBD_EXTENDED_REQUEST_BYTES] = { 0 };
    char payload[512] = { 1 };
    Client client;

    set_up(iothread);
    bitmap_add(disk->bitmaps, &options, NULL, NULL);
    open_client(&client);
    for (size_t i = 0; i < G_N_ELEMENTS(writes); i++) {
        size_t bytes =
            request_header(&client, header, NBD_CMD_WRITE, 0, i, writes[i].offset, sizeof(payload));

        g_byte_array_append(stream, header, (guint)bytes);
        g_byte_array_append(stream, (uint8_t *)payload, sizeof(payload));
    }
    memset(header, 'x', sizeof(header));
    g_byte_array_append(stream, header, sizeof(header));
    client_send(&client, stream->data, stream->len);
    for (size_t i = 0; i < G_N_ELEMENTS(writes); i++) {
        Reply reply;

        client_reply(&client, 0, &reply);
        g_assert_cmpuint(reply.cookie, ==, i);
        g_assert_cmpuint(reply.error, ==, writes[i].error);
        reply_done(&reply);
    }
    g_assert_true(at_end(&client));
    client_close(&client);
    g_assert_cmpint(bitmap_dirty_bytes(bitmap_find(disk->bitmaps, "b")), ==, 8192);
    g_assert_true(bitmap_get(bitmap_find(disk->bitmaps, "b"), 4096));
    g_assert_true(bitmap_get(bitmap_find(disk->bitmaps, "b"), 65536));
    tear_down();
}

/* --- gone --- */

/* All commands in one string of bytes. */
static GByteArray *all_commands(const Client *client)
{
    GByteArray *stream = g_byte_array_new();
    static const uint8_t payload[300];
    const struct {
        uint16_t command;
        uint64_t offset, length;
    } requests[] = {
        { NBD_CMD_READ, 0, 4096 },   { NBD_CMD_WRITE, 4096, sizeof(payload) },
        { NBD_CMD_FLUSH, 0, 0 },     { NBD_CMD_TRIM, 0, 8192 },
        { NBD_CMD_READ, 0, 200000 }, { NBD_CMD_WRITE_ZEROES, 0, 8192 },
        { NBD_CMD_CACHE, 0, 8192 },  { NBD_CMD_READ, SIZE, 1 },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(requests); i++) {
        uint8_t header[NBD_EXTENDED_REQUEST_BYTES];

        g_byte_array_append(stream, header,
                            (guint)request_header(client, header, requests[i].command, 0, i,
                                                  requests[i].offset, requests[i].length));
        if (requests[i].command == NBD_CMD_WRITE) {
            g_byte_array_append(stream, payload, sizeof(payload));
        }
    }
    return stream;
}

static void test_gone_at_any_byte(gconstpointer iothread)
{
    Client client = { .fd = -1 };
    g_autoptr(GByteArray) stream = all_commands(&client);

    set_up(iothread);
    for (guint n = 0; n <= stream->len; n++) {
        open_client(&client);
        client_send(&client, stream->data, n);
        if (n % 2) {
            run_main_once();
        }
        client_close(&client);
    }
    tear_down();
}

/* Gone with requests at work: they end first, and nobody is told. */
static void test_gone_with_requests_in_flight(gconstpointer iothread)
{
    char payload[512] = { 7 };
    Client client;

    set_up(iothread);
    memory_disk_hold(memory, true, true);
    open_client(&client);
    for (unsigned i = 0; i < 10; i++) {
        client_request(&client, NBD_CMD_READ, NBD_CMD_FLAG_DF, i, 0, 4096);
        client_request(&client, NBD_CMD_WRITE, 0, 100 + i, 8192 + i * 512, 512);
        client_send(&client, payload, sizeof(payload));
    }
    run_main_until(held_now() == 20);
    client_close(&client);
    for (int i = 0; i < 100; i++) {
        run_main_once();
    }
    g_assert_cmpint(atomic_load(&export_find("e")->refs), ==, 2);
    memory_disk_hold(memory, false, false);
    run_main_until(atomic_load(&export_find("e")->refs) == 1);
    g_assert_cmpint(memory->data[8192 + 9 * 512], ==, 7);
    tear_down();
}

/* Half gone: it sends no more but listens on. */
static void test_half_closed(gconstpointer iothread)
{
    Client client;
    Reply reply;

    set_up(iothread);
    memory_disk_hold(memory, false, true);
    open_client(&client);
    client_request(&client, NBD_CMD_READ, NBD_CMD_FLAG_DF, 5, 0, 4096);
    shutdown(client.fd, SHUT_WR);
    run_main_until(held_now() == 1);
    memory_disk_hold(memory, false, false);
    client_reply(&client, 0, &reply);
    g_assert_cmpuint(reply.cookie, ==, 5);
    reply_done(&reply);
    g_assert_true(at_end(&client));
    client_close(&client);
    tear_down();
}

/* --- removed --- */

static void test_hard_removal_with_requests_in_flight(gconstpointer iothread)
{
    char payload[4096] = { 1 };
    Client client;

    set_up(iothread);
    memory_disk_hold(memory, true, true);
    open_client(&client);
    for (unsigned i = 0; i < 10; i++) {
        client_request(&client, NBD_CMD_READ, NBD_CMD_FLAG_DF, i, 0, 4096);
    }
    client_request(&client, NBD_CMD_WRITE, 0, 100, 65536, sizeof(payload));
    client_send(&client, payload, sizeof(payload));
    run_main_until(held_now() == 11);
    g_assert_null(delete_export_error("e", BLOCK_EXPORT_REMOVE_MODE_HARD));
    g_assert_true(at_end(&client));
    g_assert_nonnull(export_find("e"));
    memory_disk_hold(memory, false, false);
    run_main_until(!export_find("e"));
    g_assert_cmpint(memory->data[65536], ==, 1);
    client_close(&client);
    stop_server();
    delete_node("d");
}

/* Asks for much and reads nothing. */
static void flood(Client *client)
{
    uint8_t header[NBD_EXTENDED_REQUEST_BYTES];
    size_t n = request_header(client, header, NBD_CMD_READ, NBD_CMD_FLAG_DF, 1, 0, MiB);
    int refused = 0;

    /* Until the server has not taken anything for a while: it waits for the client. */
    while (refused < 200) {
        refused = client_try_send(client, header, n) ? 0 : refused + 1;
        run_main_once();
    }
}

/* A client that never listens holds up neither others nor its own removal. */
static void test_client_that_does_not_listen(gconstpointer iothread)
{
    Client deaf, other;
    char byte;

    set_up(iothread);
    open_client(&deaf);
    flood(&deaf);
    open_client(&other);
    client_read(&other, 0, 0, 1, &byte);
    g_assert_null(delete_export_error("e", BLOCK_EXPORT_REMOVE_MODE_HARD));
    run_main_until(!export_find("e"));
    client_close(&deaf);
    client_close(&other);
    stop_server();
    delete_node("d");
}

/* Errors without end: each is answered. */
static void test_flood_of_errors(gconstpointer iothread)
{
    const unsigned n = 3000;
    unsigned sent = 0, answered = 0;
    Client client;

    set_up(iothread);
    open_client(&client);
    while (answered < n) {
        Reply reply;

        for (unsigned i = 0; sent < n && i < 100; i++, sent++) {
            client_request(&client, NBD_CMD_READ, 0, sent, SIZE, 1);
        }
        while (answered < sent) {
            client_reply(&client, 0, &reply);
            g_assert_cmpuint(reply.error, ==, NBD_EINVAL);
            reply_done(&reply);
            answered++;
        }
    }
    client_close(&client);
    tear_down();
}

/* Long requests that end at once do not keep the loop: another client has its turn between them. */
static void test_turns(void)
{
    const int n = 120;
    Client greedy, other;
    char payload[512] = "";

    set_up(NULL);
    open_client(&greedy);
    open_client(&other);
    atomic_store(&memory->reads, 0);
    for (int i = 0; i < n; i++) {
        client_request(&greedy, NBD_CMD_READ, NBD_CMD_FLAG_DF, (unsigned)i, 0, 512 * KiB);
    }
    client_request(&other, NBD_CMD_WRITE, 0, 0, 0, sizeof(payload));
    client_send(&other, payload, sizeof(payload));
    while (!atomic_load(&memory->writes)) {
        event_loop_poll(event_loop_main(), false);
    }
    g_assert_cmpint(atomic_load(&memory->reads), <, n / 2);
    client_close(&greedy);
    client_close(&other);
    tear_down();
}

/* --- drained --- */

static void test_drain_in_the_middle(gconstpointer iothread)
{
    char payload[512];
    Client client;

    set_up(iothread);
    open_client(&client);
    for (unsigned round = 0; round < 20; round++) {
        DrainSection *section;
        int writes;

        memset(payload, (int)round, sizeof(payload));
        for (unsigned i = 0; i < 20; i++) {
            client_request(&client, NBD_CMD_WRITE, 0, i, i * 512, 512);
            client_send(&client, payload, sizeof(payload));
        }
        section = drain_begin_node(disk);
        writes = atomic_load(&memory->writes);
        for (int i = 0; i < 20; i++) {
            run_main_once();
        }
        g_assert_cmpint(atomic_load(&memory->writes), ==, writes);
        drain_end(section);
        for (unsigned i = 0; i < 20; i++) {
            Reply reply;

            client_reply(&client, 0, &reply);
            g_assert_cmpuint(reply.error, ==, 0);
            reply_done(&reply);
        }
    }
    client_close(&client);
    tear_down();
}

/* --- beside each other --- */

static void test_many_clients(gconstpointer iothread)
{
    Client clients[30];
    char payload[4096], back[4096];

    set_up(iothread);
    for (size_t i = 0; i < G_N_ELEMENTS(clients); i++) {
        open_client(&clients[i]);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(clients); i++) {
        memset(payload, (int)i + 1, sizeof(payload));
        client_request(&clients[i], NBD_CMD_WRITE, 0, i, i * 4096, sizeof(payload));
        client_send(&clients[i], payload, sizeof(payload));
    }
    for (size_t i = 0; i < G_N_ELEMENTS(clients); i++) {
        Reply reply;

        client_reply(&clients[i], 0, &reply);
        reply_done(&reply);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(clients); i++) {
        size_t other = G_N_ELEMENTS(clients) - 1 - i;

        memset(payload, (int)other + 1, sizeof(payload));
        client_read(&clients[i], 0, other * 4096, sizeof(back), back);
        g_assert_cmpmem(back, sizeof(back), payload, sizeof(payload));
        client_close(&clients[i]);
    }
    tear_down();
}

static void add_on_both_loops(const char *name, GTestDataFunc fn)
{
    g_autofree char *on_main = g_strdup_printf("/nbd-clients/%s/main", name);
    g_autofree char *on_thread = g_strdup_printf("/nbd-clients/%s/iothread", name);

    g_test_add_data_func(on_main, NULL, fn);
    g_test_add_data_func(on_thread, "", fn);
}

int main(int argc, char **argv)
{
    nbd_harness_init(&argc, &argv);
    add_on_both_loops("in-flight", test_in_flight);
    add_on_both_loops("bytes-in-flight", test_bytes_in_flight);
    add_on_both_loops("limits", test_limits);
    add_on_both_loops("limit-of-all", test_limit_of_all);
    g_test_add_func("/nbd-clients/wrong-limits", test_wrong_limits);
    g_test_add_func("/nbd-clients/given-socket", test_given_socket);
    add_on_both_loops("torn-stream", test_torn_stream);
    add_on_both_loops("behind-a-write", test_behind_a_write);
    add_on_both_loops("gone-at-any-byte", test_gone_at_any_byte);
    add_on_both_loops("gone-with-requests-in-flight", test_gone_with_requests_in_flight);
    add_on_both_loops("half-closed", test_half_closed);
    add_on_both_loops("hard-removal", test_hard_removal_with_requests_in_flight);
    add_on_both_loops("does-not-listen", test_client_that_does_not_listen);
    add_on_both_loops("flood-of-errors", test_flood_of_errors);
    g_test_add_func("/nbd-clients/turns", test_turns);
    add_on_both_loops("drain-in-the-middle", test_drain_in_the_middle);
    add_on_both_loops("many-clients", test_many_clients);
    return nbd_harness_run();
}
