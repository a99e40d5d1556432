/* SPDX-License-Identifier: MIT */
#include "nbd-harness.h"
#include "block/iothread.h"
#include "qapi/event.h"
#include "qapi/json.h"
#include "qapi/qapi-codec.h"
#include "util/error.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static GString *events;
static char *socket_path;

/* --- the server's side --- */

static void note_event(const char *name, json_t *message)
{
    const json_t *data = json_object_get(message, "data");

    g_string_append_printf(events, "%s%s %s", events->len ? " " : "", name,
                           json_string_value(json_object_get(data, "id")));
}

char *take_events(void)
{
    char *text = g_strdup(events->str);

    g_string_truncate(events, 0);
    return text;
}

void nbd_harness_init(int *argc, char ***argv)
{
    GSource *source;

    io_harness_init(argc, argv, true);
    events = g_string_new(NULL);
    qapi_event_emit_fn = note_event;
    export_driver_register(&nbd_export_driver);
    socket_path = temp_path("nbd.sock");
    g_assert_true(iothread_add("io", NULL));
    source = event_loop_attach(event_loop_main());
    g_source_unref(source);
}

int nbd_harness_run(void)
{
    int ret = io_harness_run();

    g_assert_null(export_next(NULL));
    g_assert_true(iothread_delete("io", NULL));
    g_free(socket_path);
    g_string_free(events, TRUE);
    return ret;
}

void start_server_with(NbdServerOptions *options)
{
    SocketAddress address = { .type = SOCKET_ADDRESS_TYPE_UNIX, .u.q_unix.path = socket_path };
    GError *error = NULL;

    options->addr = &address;
    nbd_server_start(options, &error);
    g_assert_no_error(error);
    options->addr = NULL;
}

void start_server(uint32_t max_connections, uint32_t handshake_seconds)
{
    NbdServerOptions options = {
        .has_max_connections = true,
        .max_connections = max_connections,
        .has_handshake_max_seconds = true,
        .handshake_max_seconds = handshake_seconds,
    };

    start_server_with(&options);
}

void stop_server(void)
{
    GError *error = NULL;

    nbd_server_stop(&error);
    g_assert_no_error(error);
    g_free(take_events());
}

static BlockExport *add_from_text(char *text, GError **error)
{
    g_autoptr(BlockExportOptions) options = NULL;
    json_t *json;

    g_strdelimit(text, "'", '"');
    json = qapi_json_parse(text, strlen(text), error);
    g_assert_nonnull(json);
    options = block_export_options_decode(json, error);
    json_decref(json);
    return options ? export_add(options, error) : NULL;
}

BlockExport *add_export(const char *format, ...)
{
    g_autofree char *text = NULL;
    GError *error = NULL;
    BlockExport *exp;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    exp = add_from_text(text, &error);
    g_assert_no_error(error);
    return exp;
}

char *add_export_error(const char *format, ...)
{
    g_autofree char *text = NULL;
    g_autoptr(GError) error = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    g_assert_null(add_from_text(text, &error));
    return g_strdup(error->message);
}

char *delete_export_error(const char *id, BlockExportRemoveMode mode)
{
    g_autoptr(GError) error = NULL;

    return export_delete(id, mode, &error) ? NULL : merino_error_text(error);
}

void run_main_once(void)
{
    g_main_context_iteration(NULL, FALSE);
    event_loop_poll(event_loop_main(), false);
    g_thread_yield();
}

/* --- the client: bytes --- */

void client_connect(Client *client)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };

    g_strlcpy(address.sun_path, socket_path, sizeof(address.sun_path));
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    client->layer = NULL;
    g_assert_cmpint(connect(client->fd, (struct sockaddr *)&address, sizeof(address)), ==, 0);
    fcntl(client->fd, F_SETFL, O_NONBLOCK);
}

void client_close(Client *client)
{
    close(client->fd);
    client->fd = -1;
}

static ssize_t layer_send(Client *client, const void *data, size_t length)
{
    return client->layer ? client->layer->send(client->layer_state, data, length)
                         : send(client->fd, data, length, MSG_NOSIGNAL);
}

bool client_try_send(Client *client, const void *data, size_t length)
{
    ssize_t ret = send(client->fd, data, length, MSG_NOSIGNAL);

    g_assert_true(ret == (ssize_t)length || ret < 0);
    return ret >= 0;
}

void client_send(Client *client, const void *data, size_t length)
{
    const char *next = data;

    while (length) {
        ssize_t ret = layer_send(client, next, length);

        if (ret < 0) {
            g_assert_cmpint(errno, ==, EAGAIN);
            run_main_once();
        } else {
            next += ret;
            length -= (size_t)ret;
        }
    }
}

static ssize_t recv_some(Client *client, void *data, size_t length)
{
    ssize_t ret;

    do {
        ret = client->layer ? client->layer->recv(client->layer_state, data, length)
                            : recv(client->fd, data, length, 0);
        if (ret >= 0 || errno != EAGAIN) {
            return ret;
        }
        run_main_once();
    } while (true);
}

void client_recv(Client *client, void *data, size_t length)
{
    char *next = data;

    while (length) {
        ssize_t ret = recv_some(client, next, length);

        g_assert_cmpint(ret, >, 0);
        next += ret;
        length -= (size_t)ret;
    }
}

bool at_end(Client *client)
{
    char byte;

    return recv_some(client, &byte, 1) <= 0;
}

/* --- the client: negotiation --- */

static void append32(GByteArray *array, uint32_t value)
{
    uint8_t bytes[4];

    nbd_put32(bytes, value);
    g_byte_array_append(array, bytes, sizeof(bytes));
}

static void append_string(GByteArray *array, const char *text)
{
    append32(array, (uint32_t)strlen(text));
    g_byte_array_append(array, (const uint8_t *)text, (guint)strlen(text));
}

void client_option(Client *client, uint32_t option, const void *data, size_t length)
{
    uint8_t header[NBD_OPTION_BYTES];

    nbd_put64(header, NBD_OPTION_MAGIC);
    nbd_put32(header + 8, option);
    nbd_put32(header + 12, (uint32_t)length);
    client_send(client, header, sizeof(header));
    client_send(client, data, length);
}

uint32_t client_option_reply(Client *client, uint32_t option, GByteArray **ret_data)
{
    uint8_t header[NBD_OPTION_REPLY_BYTES];
    g_autoptr(GByteArray) data = g_byte_array_new();

    client_recv(client, header, sizeof(header));
    g_assert_cmphex(nbd_get64(header), ==, NBD_OPTION_REPLY_MAGIC);
    g_assert_cmpuint(nbd_get32(header + 8), ==, option);
    g_byte_array_set_size(data, nbd_get32(header + 16));
    client_recv(client, data->data, data->len);
    if (ret_data) {
        *ret_data = g_steal_pointer(&data);
    }
    return nbd_get32(header + 12);
}

GByteArray *go_data(const char *name, const uint16_t *infos, uint16_t n)
{
    GByteArray *data = g_byte_array_new();
    uint8_t number[2];

    append_string(data, name);
    nbd_put16(number, n);
    g_byte_array_append(data, number, sizeof(number));
    for (uint16_t i = 0; i < n; i++) {
        nbd_put16(number, infos[i]);
        g_byte_array_append(data, number, sizeof(number));
    }
    return data;
}

GByteArray *contexts_data(const char *name, const char *contexts)
{
    GByteArray *data = g_byte_array_new();
    g_auto(GStrv) queries = g_strsplit(contexts, " ", -1);

    append_string(data, name);
    append32(data, g_strv_length(queries));
    for (char **query = queries; *query; query++) {
        append_string(data, *query);
    }
    return data;
}

void client_greet(Client *client)
{
    uint8_t greeting[NBD_GREETING_BYTES], flags[NBD_CLIENT_FLAGS_BYTES];

    client_connect(client);
    client_recv(client, greeting, sizeof(greeting));
    g_assert_cmphex(nbd_get64(greeting), ==, NBD_MAGIC);
    g_assert_cmphex(nbd_get64(greeting + 8), ==, NBD_OPTION_MAGIC);
    g_assert_cmphex(nbd_get16(greeting + 16), ==, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    nbd_put32(flags, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    client_send(client, flags, sizeof(flags));
}

void client_set_up(Client *client, bool structured, bool extended)
{
    client->structured = structured || extended;
    client->extended = extended;
    if (client->structured) {
        uint32_t option = extended ? NBD_OPT_EXTENDED_HEADERS : NBD_OPT_STRUCTURED_REPLY;

        client_option(client, option, NULL, 0);
        g_assert_cmphex(client_option_reply(client, option, NULL), ==, NBD_REP_ACK);
    }
}

void client_open(Client *client, bool structured, bool extended)
{
    client_greet(client);
    client_set_up(client, structured, extended);
}

static void expect_ack(Client *client, uint32_t option)
{
    uint32_t type;

    do {
        type = client_option_reply(client, option, NULL);
        g_assert_cmphex(type & NBD_REP_FLAG_ERROR, ==, 0);
    } while (type != NBD_REP_ACK);
}

void client_go(Client *client, const char *name, const char *contexts)
{
    g_autoptr(GByteArray) go = go_data(name, NULL, 0);

    if (contexts) {
        g_autoptr(GByteArray) set = contexts_data(name, contexts);

        client_option(client, NBD_OPT_SET_META_CONTEXT, set->data, set->len);
        expect_ack(client, NBD_OPT_SET_META_CONTEXT);
    }
    client_option(client, NBD_OPT_GO, go->data, go->len);
    expect_ack(client, NBD_OPT_GO);
}

/* --- the client: transmission --- */

size_t request_header(const Client *client, uint8_t *bytes, uint16_t command, uint16_t flags,
                      uint64_t cookie, uint64_t offset, uint64_t length)
{
    nbd_put32(bytes, client->extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
    nbd_put16(bytes + 4, flags);
    nbd_put16(bytes + 6, command);
    nbd_put64(bytes + 8, cookie);
    nbd_put64(bytes + 16, offset);
    if (client->extended) {
        nbd_put64(bytes + 24, length);
        return NBD_EXTENDED_REQUEST_BYTES;
    }
    nbd_put32(bytes + 24, (uint32_t)length);
    return NBD_REQUEST_BYTES;
}

void client_request(Client *client, uint16_t command, uint16_t flags, uint64_t cookie,
                    uint64_t offset, uint64_t length)
{
    uint8_t bytes[NBD_EXTENDED_REQUEST_BYTES];

    client_send(client, bytes,
                request_header(client, bytes, command, flags, cookie, offset, length));
}

static void recv_data(Client *client, Reply *reply, uint64_t length)
{
    g_assert_cmpuint(length, <=, 2 * NBD_MAX_PAYLOAD);
    g_byte_array_set_size(reply->data, (guint)length);
    client_recv(client, reply->data->data, length);
}

static void recv_chunk(Client *client, Reply *ret)
{
    uint8_t head[NBD_EXTENDED_CHUNK_BYTES];
    size_t n = nbd_chunk_bytes(client->extended);

    g_assert_true(client->structured);
    client_recv(client, head + 4, n - 4);
    ret->chunk = true;
    ret->flags = nbd_get16(head + 4);
    ret->type = nbd_get16(head + 6);
    ret->cookie = nbd_get64(head + 8);
    ret->offset = client->extended ? nbd_get64(head + 16) : 0;
    recv_data(client, ret, client->extended ? nbd_get64(head + 24) : nbd_get32(head + 16));
    if (ret->type & (1 << 15)) {
        ret->error = nbd_get32(ret->data->data);
    }
}

void client_reply(Client *client, size_t read_length, Reply *ret)
{
    uint8_t head[NBD_SIMPLE_REPLY_BYTES];
    uint32_t magic;

    *ret = (Reply){ .data = g_byte_array_new() };
    client_recv(client, head, 4);
    magic = nbd_get32(head);
    if (magic != NBD_SIMPLE_REPLY_MAGIC) {
        g_assert_cmphex(magic, ==, client->extended ? NBD_EXTENDED_CHUNK_MAGIC : NBD_CHUNK_MAGIC);
        recv_chunk(client, ret);
        return;
    }
    g_assert_false(client->extended);
    client_recv(client, head + 4, sizeof(head) - 4);
    ret->error = nbd_get32(head + 4);
    ret->cookie = nbd_get64(head + 8);
    recv_data(client, ret, ret->error ? 0 : read_length);
}

void reply_done(Reply *reply)
{
    g_byte_array_free(reply->data, TRUE);
    reply->data = NULL;
}

uint32_t client_do(Client *client, uint16_t command, uint16_t flags, uint64_t offset,
                   uint64_t length, const void *payload)
{
    static uint64_t cookie;
    Reply reply;

    client_request(client, command, flags, ++cookie, offset, length);
    if (payload) {
        client_send(client, payload, length);
    }
    client_reply(client, 0, &reply);
    g_assert_cmphex(reply.cookie, ==, cookie);
    g_assert_true(!reply.chunk || (reply.flags & NBD_CHUNK_FLAG_DONE));
    reply_done(&reply);
    return reply.error;
}

static void take_read_chunk(const Reply *reply, uint64_t offset, uint64_t length, uint8_t *data)
{
    uint64_t at = nbd_get64(reply->data->data) - offset;
    uint64_t n = reply->type == NBD_CHUNK_OFFSET_HOLE ? nbd_get32(reply->data->data + 8)
                                                      : reply->data->len - 8;

    g_assert_true(reply->type == NBD_CHUNK_OFFSET_HOLE || reply->type == NBD_CHUNK_OFFSET_DATA);
    g_assert_true(at <= length && n <= length - at);
    if (reply->type == NBD_CHUNK_OFFSET_HOLE) {
        memset(data + at, 0, n);
    } else {
        memcpy(data + at, reply->data->data + 8, n);
    }
}

void client_read(Client *client, uint16_t flags, uint64_t offset, uint64_t length, void *data)
{
    Reply reply;
    bool done;

    client_request(client, NBD_CMD_READ, flags, 77, offset, length);
    do {
        client_reply(client, length, &reply);
        g_assert_cmpuint(reply.error, ==, 0);
        g_assert_cmpuint(reply.cookie, ==, 77);
        if (reply.chunk) {
            take_read_chunk(&reply, offset, length, data);
        } else {
            memcpy(data, reply.data->data, length);
        }
        done = !reply.chunk || (reply.flags & NBD_CHUNK_FLAG_DONE);
        reply_done(&reply);
    } while (!done);
}
