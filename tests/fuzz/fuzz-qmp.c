/* SPDX-License-Identifier: MIT */
/*
 * A QMP session from its greeting to its end, with the commands of the schema at work on disks in
 * memory. Each message, or piece of text that is none, gets exactly one reply.
 *
 * Left out is what an input could use to reach out of the process, or to take long by right: the
 * server's commands and quit are decoded and refused, there are a few I/O threads at most, the
 * largest query is answered a few times a session, bitmaps of very large disks are not summed up,
 * and inputs that make a disk slow are passed over.
 */
#include "block/node.h"
#include "disks.h"
#include "fuzz.h"
#include "monitor/events.h"
#include "qapi/codec.h"
#include "qapi/json.h"
#include "qapi/qapi-commands.h"
#include "qmp-framing.h"
#include "qmp-session.h"
#include "util/error.h"
#include "util/event-loop.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_IOTHREADS 2
#define MAX_OBJECTS   8
#define MAX_SCHEMAS   2
#define MAX_SUMMED    (INT64_C(1) << 34) /* bytes of a disk */

/* A client that got as many bytes has had enough and hangs up. */
#define MAX_RECEIVED (4 << 20)

/* --- commands that are not what they seem --- */

static unsigned iothreads_made, schemas_given;
static GPtrArray *objects; /* json_t *, arguments for object-del */

static bool refuse(GError **error)
{
    merino_error(error, "Not while fuzzing");
    return false;
}

static bool decode_and_refuse(const QapiType *type, const json_t *args, GError **error)
{
    void *value = qapi_decode(type, args, QAPI_DECODE_JSON, error);

    if (value) {
        qapi_value_free(type, value);
        refuse(error);
    }
    return false;
}

static bool run_nbd_server_start(const json_t *args, json_t **ret, GError **error)
{
    return decode_and_refuse(&qapi_type_NbdServerStartArgs, args, error);
}

static bool run_no_more(const json_t *args, json_t **ret, GError **error)
{
    return qapi_no_arguments(args, error) && refuse(error);
}

/* Objects that look at files are not made. */
static bool is_harmless(const char *type, const json_t *args)
{
    if (strcmp(type, "iothread") == 0) {
        return iothreads_made < MAX_IOTHREADS;
    }
    return !g_str_has_prefix(type, "tls") && !json_object_get(args, "file");
}

/* What is made goes with the input. */
static bool run_object_add(const json_t *args, json_t **ret, GError **error)
{
    const char *type = json_string_value(json_object_get(args, "qom-type"));

    if (type && (objects->len == MAX_OBJECTS || !is_harmless(type, args))) {
        return decode_and_refuse(&qapi_type_ObjectOptions, args, error);
    }
    if (!qapi_command_run(qapi_commands, "object-add", args, ret, error)) {
        return false;
    }
    iothreads_made += strcmp(type, "iothread") == 0;
    g_ptr_array_add(objects, json_pack("{s:O}", "id", json_object_get(args, "id")));
    return true;
}

static void free_json(void *json)
{
    json_decref(json);
}

static void delete_objects(void)
{
    for (guint i = 0; i < objects->len; i++) {
        json_t *ret = NULL;

        qapi_command_run(qapi_commands, "object-del", objects->pdata[i], &ret, NULL);
        json_decref(ret);
    }
    g_ptr_array_set_size(objects, 0);
    iothreads_made = 0;
}

static bool run_query_qmp_schema(const json_t *args, json_t **ret, GError **error)
{
    if (schemas_given == MAX_SCHEMAS) {
        return run_no_more(args, ret, error);
    }
    schemas_given++;
    return qapi_command_run(qapi_commands, "query-qmp-schema", args, ret, error);
}

static bool has_large_disk(void)
{
    for (BlockNode *node = node_next(NULL); node; node = node_next(node)) {
        if (node_size(node) > MAX_SUMMED) {
            return true;
        }
    }
    return false;
}

static bool run_sha256(const json_t *args, json_t **ret, GError **error)
{
    if (has_large_disk()) {
        return decode_and_refuse(&qapi_type_BlockDirtyBitmap, args, error);
    }
    return qapi_command_run(qapi_commands, "x-debug-block-dirty-bitmap-sha256", args, ret, error);
}

static const QapiCommand replacements[] = {
    { "nbd-server-start", run_nbd_server_start },
    { "nbd-server-stop", run_no_more },
    { "object-add", run_object_add },
    { "query-qmp-schema", run_query_qmp_schema },
    { "quit", run_no_more },
    { "x-debug-block-dirty-bitmap-sha256", run_sha256 },
    { NULL, NULL },
};

static const QapiCommand *make_commands(void)
{
    GArray *commands = g_array_new(TRUE, TRUE, sizeof(QapiCommand));

    for (const QapiCommand *command = qapi_commands; command->name; command++) {
        const QapiCommand *other = qapi_command_find(replacements, command->name);

        g_array_append_vals(commands, other ? other : command, 1);
    }
    return (const QapiCommand *)g_array_free(commands, FALSE);
}

static const QapiCommand *commands;

static void init(void)
{
    if (!commands) {
        disks_init();
        event_loop_attach(event_loop_main());
        qmp_events_init();
        commands = make_commands();
        objects = g_ptr_array_new_with_free_func(free_json);
    }
}

/* --- what comes back --- */

static unsigned count_messages(const uint8_t *data, size_t size)
{
    g_autoptr(QmpFraming) framing = qmp_framing_new();
    QmpFramingResult result;
    unsigned n = 0;

    qmp_framing_push(framing, data, size);
    do {
        json_t *message = NULL;
        GError *error = NULL;

        result = qmp_framing_next(framing, &message, &error);
        n += result != QMP_FRAMING_MORE;
        json_decref(message);
        g_clear_error(&error);
    } while (result != QMP_FRAMING_MORE);
    return n;
}

/* Whether the line is a reply, not an event or the greeting. */
static bool is_reply(const char *line)
{
    json_auto_t *message = qapi_json_parse(line, strlen(line), NULL);
    const json_t *error = json_object_get(message, "error");
    bool reply = error || json_object_get(message, "return");

    g_assert(json_is_object(message));
    g_assert(reply || json_object_get(message, "event") || json_object_get(message, "QMP"));
    if (error) {
        g_assert(json_string_length(json_object_get(error, "class")) > 0);
        g_assert(json_string_length(json_object_get(error, "desc")) > 0);
    }
    return reply;
}

static unsigned count_replies(const GString *received)
{
    g_auto(GStrv) lines = g_strsplit(received->str, "\r\n", -1);
    unsigned n = 0;

    for (guint i = 0; lines[i]; i++) {
        n += *lines[i] && is_reply(lines[i]);
    }
    return n;
}

/* --- the client --- */

static void on_ended(void *opaque)
{
    *(bool *)opaque = true;
}

/* Send what is taken now; false at the end of the input. */
static bool send_some(int fd, const uint8_t **data, size_t *size)
{
    ssize_t sent = send(fd, *data, *size, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (sent > 0) {
        *data += sent;
        *size -= (size_t)sent;
    }
    return *size > 0;
}

/* Take what there is; false when it is more than enough. */
static bool receive_some(int fd, GString *received)
{
    char bytes[16384];
    ssize_t got;

    while ((got = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0) {
        g_string_append_len(received, bytes, got);
    }
    return received->len <= MAX_RECEIVED;
}

/* The whole session. False when the client hung up. */
static bool converse(const uint8_t *data, size_t size, GString *received)
{
    QmpSessionOptions options = { .commands = commands, .ended = on_ended };
    bool ended = false, sending = true;
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        g_error("cannot make a pair of sockets: %m");
    }
    options.in_fd = options.out_fd = pair[1];
    options.opaque = &ended;
    qmp_session_new(&options);
    while (!ended) {
        if (sending && !send_some(pair[0], &data, &size)) {
            sending = false;
            shutdown(pair[0], SHUT_WR);
        }
        if (!receive_some(pair[0], received)) {
            shutdown(pair[0], SHUT_RDWR);
        }
        g_main_context_iteration(NULL, TRUE);
    }
    receive_some(pair[0], received);
    close(pair[0]);
    close(pair[1]);
    return received->len <= MAX_RECEIVED;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char slow[] = "latency-ns";
    GString *received;

    init();
    if (memmem(data, size, slow, strlen(slow))) {
        return 0;
    }
    schemas_given = 0;
    received = g_string_new(NULL);
    if (converse(data, size, received)) {
        g_assert_cmpuint(count_replies(received), ==, count_messages(data, size));
    }
    g_string_free(received, TRUE);
    disks_clear();
    delete_objects();
    return 0;
}
