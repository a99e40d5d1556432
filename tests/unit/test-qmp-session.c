/* SPDX-License-Identifier: MIT */
/*
 * QMP sessions over socket pairs and pipes, with a small table of commands made for the purpose.
 */
#include "events-internal.h"
#include "monitor/events.h"
#include "qapi/event.h"
#include "qmp-framing.h"
#include "qmp-session.h"
#include "util/error.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <jansson.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* A safety net against hangs, never what a test waits for. */
#define DEADLINE_US (30 * G_USEC_PER_SEC)

/* --- the commands --- */

static unsigned commands_run;
static char *large_text;

static bool run_capabilities(const json_t *arguments, json_t **ret, GError **error)
{
    if (!qapi_no_arguments(arguments, error)) {
        return false;
    }
    *ret = json_object();
    return true;
}

static bool run_count(const json_t *arguments, json_t **ret, GError **error)
{
    *ret = json_integer(++commands_run);
    return true;
}

static bool run_large(const json_t *arguments, json_t **ret, GError **error)
{
    commands_run++;
    *ret = json_string(large_text);
    return true;
}

static bool run_fail(const json_t *arguments, json_t **ret, GError **error)
{
    merino_error_class(error, MERINO_ERROR_DEVICE_NOT_FOUND, "No \"disk\" here");
    merino_error_hint(error, "Look elsewhere");
    return false;
}

static bool run_tell(const json_t *arguments, json_t **ret, GError **error)
{
    qapi_event_send("TOLD", NULL);
    *ret = json_object();
    return true;
}

static bool run_tell_first(const json_t *arguments, json_t **ret, GError **error)
{
    qapi_event_send("TOLD", NULL);
    qmp_events_flush();
    *ret = json_object();
    return true;
}

static bool run_stop(const json_t *arguments, json_t **ret, GError **error)
{
    qmp_sessions_stop();
    *ret = json_object();
    return true;
}

static const QapiCommand commands[] = {
    { "qmp_capabilities", run_capabilities },
    { "count", run_count },
    { "large", run_large },
    { "fail", run_fail },
    { "tell", run_tell },
    { "tell-first", run_tell_first },
    { "stop", run_stop },
    { NULL, NULL },
};

/* --- a client --- */

typedef struct Client {
    int fd;      /* reads replies; -1: closed */
    int send_fd; /* may be the same */
    int server_in, server_out;
    QmpSession *session; /* NULL: ended */
    GString *received;
} Client;

static void on_ended(void *opaque)
{
    Client *client = opaque;

    client->session = NULL;
    close(client->server_in);
    if (client->server_out != client->server_in) {
        close(client->server_out);
    }
}

static Client *client_begin(int fd, int send_fd, int server_in, int server_out, bool pretty)
{
    Client *client = g_new0(Client, 1);
    QmpSessionOptions options = {
        .in_fd = server_in,
        .out_fd = server_out,
        .pretty = pretty,
        .commands = commands,
        .ended = on_ended,
        .opaque = client,
    };

    client->fd = fd;
    client->send_fd = send_fd;
    client->server_in = server_in;
    client->server_out = server_out;
    client->received = g_string_new(NULL);
    client->session = qmp_session_new(&options);
    g_assert_true(g_unix_set_fd_nonblocking(fd, true, NULL));
    g_assert_true(g_unix_set_fd_nonblocking(send_fd, true, NULL));
    return client;
}

static Client *client_new(bool pretty)
{
    int pair[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), ==, 0);
    return client_begin(pair[0], pair[0], pair[1], pair[1], pretty);
}

static Client *client_new_on_pipes(void)
{
    int to[2], from[2];

    g_assert_true(g_unix_open_pipe(to, FD_CLOEXEC, NULL));
    g_assert_true(g_unix_open_pipe(from, FD_CLOEXEC, NULL));
    return client_begin(from[0], to[1], to[0], from[1], false);
}

static void client_hang_up(Client *client)
{
    if (client->fd >= 0) {
        close(client->fd);
        if (client->send_fd != client->fd) {
            close(client->send_fd);
        }
        client->fd = -1;
    }
}

static void client_free(Client *client)
{
    if (client->session) {
        qmp_session_free(client->session, 0);
        on_ended(client);
    }
    client_hang_up(client);
    g_string_free(client->received, true);
    g_free(client);
}

static void iterate(int64_t deadline_us)
{
    g_assert_cmpint(g_get_monotonic_time(), <, deadline_us);
    g_main_context_iteration(NULL, false);
}

/* Take what there is to read; false at the end of the stream. */
static bool client_receive(Client *client)
{
    char bytes[65536];
    ssize_t got = read(client->fd, bytes, sizeof(bytes));

    if (got > 0) {
        g_string_append_len(client->received, bytes, got);
    }
    return got > 0 || (got < 0 && errno == EAGAIN);
}

static void client_send(Client *client, const char *text)
{
    size_t len = strlen(text);
    int64_t deadline_us = g_get_monotonic_time() + DEADLINE_US;

    for (size_t done = 0; done < len; iterate(deadline_us)) {
        ssize_t sent = write(client->send_fd, text + done, len - done);

        done += MAX(sent, 0);
    }
}

/* The next line, without its end. Caller frees. */
static char *client_line(Client *client)
{
    int64_t deadline_us = g_get_monotonic_time() + DEADLINE_US;
    char *end;
    char *line;

    while (!(end = strstr(client->received->str, "\r\n"))) {
        iterate(deadline_us);
        g_assert_true(client_receive(client));
    }
    line = g_strndup(client->received->str, end - client->received->str);
    g_string_erase(client->received, 0, end + 2 - client->received->str);
    return line;
}

static void expect(Client *client, const char *line)
{
    g_autofree char *got = client_line(client);

    g_assert_cmpstr(got, ==, line);
}

static void expect_event(Client *client, const char *name)
{
    g_autofree char *got = client_line(client);
    g_autofree char *end = g_strdup_printf("}, \"event\": \"%s\"}", name);

    g_assert_true(g_str_has_prefix(got, "{\"timestamp\": {\"seconds\": "));
    g_assert_true(g_str_has_suffix(got, end));
}

static void expect_end(Client *client)
{
    int64_t deadline_us = g_get_monotonic_time() + DEADLINE_US;

    while (client_receive(client)) {
        iterate(deadline_us);
    }
    g_assert_cmpstr(client->received->str, ==, "");
}

static void negotiate(Client *client)
{
    g_autofree char *greeting = client_line(client);

    g_assert_true(g_str_has_prefix(greeting, "{\"QMP\": "));
    client_send(client, "{'execute':'qmp_capabilities'}");
    expect(client, "{\"return\": {}}");
    commands_run = 0;
}

/* `text`, `n` times. Caller frees. */
static char *times(const char *text, unsigned n)
{
    GString *out = g_string_new(NULL);

    while (n--) {
        g_string_append(out, text);
    }
    return g_string_free(out, false);
}

/* --- tests --- */

#define REFUSED(words) "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"" words "\"}}"
#define WRONG(words)   "{\"error\": {\"class\": \"GenericError\", \"desc\": \"" words "\"}}"

static void test_negotiation(void)
{
    Client *client = client_new(false);

    expect(client,
           "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, "
           "\"package\": \"Merino " MERINO_VERSION "\"}, \"capabilities\": []}}");
    client_send(client, "{'execute':'count'}");
    expect(client, REFUSED("Expecting capabilities negotiation with 'qmp_capabilities'"));
    client_send(client, "{'execute':'no-such'}");
    expect(client, REFUSED("Expecting capabilities negotiation with 'qmp_capabilities'"));
    client_send(client, "{'execute':'qmp_capabilities','arguments':{'x':1}}");
    expect(client, WRONG("Parameter 'x' is unexpected"));
    qapi_event_send("TOLD", NULL);
    client_send(client, "{'execute':'qmp_capabilities'}");
    expect(client, "{\"return\": {}}");
    client_send(client, "{'execute':'qmp_capabilities'}");
    expect(client, REFUSED("Capabilities negotiation is already complete, command ignored"));
    client_send(client, "{'execute':'no-such'}");
    expect(client, REFUSED("The command no-such has not been found"));
    client_free(client);
}

static void test_forms(void)
{
    static const char *const cases[][2] = {
        { "[]", WRONG("QMP input must be a JSON object") },
        { "\"x\"", WRONG("QMP input must be a JSON object") },
        { "{}", WRONG("QMP input lacks member 'execute'") },
        { "{'execute':1}", WRONG("QMP input member 'execute' must be a string") },
        { "{'execute':'count','foo':1}", WRONG("QMP input member 'foo' is unexpected") },
        { "{'exec-oob':'count'}", WRONG("QMP input member 'exec-oob' is unexpected") },
        { "{'execute':'count','arguments':[]}",
          WRONG("QMP input member 'arguments' must be an object") },
        { "{'execute':'count','arguments':null}",
          WRONG("QMP input member 'arguments' must be an object") },
        { "{'execute':'count',}", WRONG("JSON parse error, expecting value") },
        { ";\n", WRONG("JSON parse error, stray ';'") },
        { "{'execute':'a\\nb'}", REFUSED("The command a\\nb has not been found") },
        { "{'execute':'fail'}",
          "{\"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"No \\\"disk\\\" here\"}}" },
    };
    Client *client = client_new(false);

    negotiate(client);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        client_send(client, cases[i][0]);
        expect(client, cases[i][1]);
    }
    client_send(client, "{'execute':'count','arguments':{}}");
    expect(client, "{\"return\": 1}");
    client_free(client);
}

static void test_id(void)
{
    Client *client = client_new(false);

    negotiate(client);
    client_send(client, "{'execute':'count','id':'a'}{'execute':'count','id':null}");
    expect(client, "{\"return\": 1, \"id\": \"a\"}");
    expect(client, "{\"return\": 2, \"id\": null}");
    client_send(client, "{'id':[1,{'x':true}],'execute':'count'}{'id':-0.5,'foo':1}");
    expect(client, "{\"return\": 3, \"id\": [1, {\"x\": true}]}");
    expect(client, "{\"id\": -0.5, \"error\": {\"class\": \"GenericError\", \"desc\": "
                   "\"QMP input member 'foo' is unexpected\"}}");
    client_free(client);
}

static void test_pieces(void)
{
    static const char command[] = "{ 'execute': 'count' }\n";
    Client *client = client_new(false);
    g_autofree char *many = times(command, 100);

    negotiate(client);
    client_send(client, many);
    for (unsigned i = 1; i <= 100; i++) {
        g_autofree char *reply = g_strdup_printf("{\"return\": %u}", i);

        expect(client, reply);
    }
    for (const char *at = command; *at; at++) {
        char piece[2] = { *at, 0 };

        client_send(client, piece);
    }
    expect(client, "{\"return\": 101}");
    client_free(client);
}

static void test_pretty(void)
{
    Client *client = client_new(true);

    expect(client, "{\n"
                   "    \"QMP\": {\n"
                   "        \"version\": {\n"
                   "            \"qemu\": {\n"
                   "                \"micro\": 22,\n"
                   "                \"minor\": 2,\n"
                   "                \"major\": 7\n"
                   "            },\n"
                   "            \"package\": \"Merino " MERINO_VERSION "\"\n"
                   "        },\n"
                   "        \"capabilities\": [\n"
                   "        ]\n"
                   "    }\n"
                   "}");
    client_free(client);
}

static void test_events(void)
{
    Client *one = client_new(false);
    Client *other = client_new(false);

    negotiate(one);
    negotiate(other);
    client_send(one, "{'execute':'tell'}{'execute':'count'}");
    expect(one, "{\"return\": {}}");
    expect_event(one, "TOLD");
    expect(one, "{\"return\": 1}");
    client_send(one, "{'execute':'tell-first'}");
    expect_event(one, "TOLD");
    expect(one, "{\"return\": {}}");
    qapi_event_send("LATER", json_pack("{s:i}", "x", 1));
    for (int i = 0; i < 2; i++) {
        expect_event(other, "TOLD");
    }
    for (int i = 0; i < 2; i++) {
        g_autofree char *got = client_line(i ? one : other);

        g_assert_nonnull(strstr(got, "}, \"event\": \"LATER\", \"data\": {\"x\": 1}}"));
    }
    client_free(one);
    client_free(other);
}

/* One client sends much and reads nothing. The other is served meanwhile, what waits for the first
 * is bounded, and nothing is lost once it reads. */
static void check_slow_reader(Client *slow)
{
    enum {
        COMMANDS = 2000
    };
    Client *other = client_new(false);
    g_autofree char *many = times("{'execute':'large'}", COMMANDS);
    size_t len = strlen(many);
    size_t sent = 0;
    unsigned idle_turns = 0;

    negotiate(slow);
    negotiate(other);
    /* Each answer to the other client is a turn that the slow one's session had, too. */
    while (idle_turns < 20) {
        ssize_t wrote = sent < len ? write(slow->send_fd, many + sent, len - sent) : 0;
        unsigned before = commands_run;

        sent += MAX(wrote, 0);
        client_send(other, "{'execute':'fail'}");
        g_free(client_line(other));
        idle_turns = commands_run > before ? 0 : idle_turns + 1;
    }
    g_assert_cmpuint(commands_run, >, 0);
    g_assert_cmpuint(commands_run * strlen(large_text), <, QMP_BACKLOG_MAX + (2 << 20));

    for (unsigned i = 0; i < COMMANDS; i++) {
        int64_t deadline_us = g_get_monotonic_time() + DEADLINE_US;
        size_t want = strlen(large_text) + strlen("{\"return\": \"\"}\r\n");

        while (slow->received->len < want) {
            ssize_t wrote = sent < len ? write(slow->send_fd, many + sent, len - sent) : 0;

            sent += MAX(wrote, 0);
            iterate(deadline_us);
            g_assert_true(client_receive(slow));
        }
        g_assert_true(g_str_has_prefix(slow->received->str, "{\"return\": \"xxx"));
        g_string_erase(slow->received, 0, want);
    }
    g_assert_cmpuint(commands_run, ==, COMMANDS);
    client_free(slow);
    client_free(other);
}

static void test_slow_reader(void)
{
    check_slow_reader(client_new(false));
}

static void test_slow_reader_on_pipes(void)
{
    check_slow_reader(client_new_on_pipes());
}

static void test_many_at_once(void)
{
    Client *busy = client_new(false);
    Client *other = client_new(false);
    g_autofree char *many = times("{'execute':'count'}\n", 3000);

    negotiate(busy);
    negotiate(other);
    client_send(busy, many);
    client_send(other, "{'execute':'fail'}");
    g_free(client_line(other));
    g_assert_cmpuint(commands_run, <, 3000);
    for (unsigned i = 0; i < 3000; i++) {
        g_free(client_line(busy));
    }
    g_assert_cmpuint(commands_run, ==, 3000);
    client_free(busy);
    client_free(other);
}

static void test_events_unread(void)
{
    Client *deaf = client_new(false);
    Client *other = client_new(false);
    size_t event_len = strlen(large_text);

    negotiate(deaf);
    negotiate(other);
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*does not read its events*");
    for (size_t sent = 0; sent < QMP_EVENTS_MAX + 8 * event_len + (1 << 20); sent += event_len) {
        qapi_event_send("LARGE", json_pack("{s:s}", "x", large_text));
        g_free(client_line(other));
    }
    g_test_assert_expected_messages();
    g_assert_null(deaf->session);
    g_assert_nonnull(other->session);
    client_send(other, "{'execute':'count'}");
    expect(other, "{\"return\": 1}");
    client_free(deaf);
    client_free(other);
}

/* The session is given up in the same turn in which its client goes. */
static void test_unread_and_gone(void)
{
    Client *deaf = client_new(false);
    int64_t deadline_us = g_get_monotonic_time() + DEADLINE_US;
    size_t event_len = strlen(large_text);

    negotiate(deaf);
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*does not read its events*");
    for (size_t sent = 0; sent < QMP_EVENTS_MAX + 8 * event_len + (1 << 20); sent += event_len) {
        qapi_event_send("LARGE", json_pack("{s:s}", "x", large_text));
    }
    g_test_assert_expected_messages();
    client_hang_up(deaf);
    while (deaf->session) {
        iterate(deadline_us);
    }
    client_free(deaf);
}

static void test_half_closed(void)
{
    Client *client = client_new(false);
    g_autofree char *many = times("{'execute':'count'}", 50);

    negotiate(client);
    client_send(client, many);
    client_send(client, "{'execute':");
    g_assert_cmpint(shutdown(client->fd, SHUT_WR), ==, 0);
    for (unsigned i = 0; i < 50; i++) {
        g_free(client_line(client));
    }
    expect_end(client);
    g_assert_null(client->session);
    client_free(client);
}

static void test_vanished(void)
{
    for (int i = 0; i < 2; i++) {
        Client *client = i ? client_new_on_pipes() : client_new(false);
        g_autofree char *many = times("{'execute':'large'}", 100);
        int64_t deadline_us = g_get_monotonic_time() + DEADLINE_US;

        negotiate(client);
        client_send(client, many);
        client_hang_up(client);
        while (client->session) {
            iterate(deadline_us);
        }
        client_free(client);
    }
}

static void test_drain_at_end(void)
{
    Client *client = client_new(false);
    g_autofree char *many = times("{'execute':'large'}", 100);

    negotiate(client);
    client_send(client, many);
    /* Nobody reads, so this ends at its deadline, which is now. */
    qmp_session_free(client->session, g_get_monotonic_time());
    on_ended(client);
    client_free(client);
}

static void test_stop(void)
{
    Client *client = client_new(false);
    Client *other = client_new(false);

    negotiate(client);
    negotiate(other);
    client_send(client, "{'execute':'stop'}{'execute':'count'}");
    client_send(other, "{'execute':'count'}");
    expect(client, "{\"return\": {}}");
    qapi_event_send("TOLD", NULL);
    expect_event(client, "TOLD");
    expect_event(other, "TOLD");
    g_assert_cmpuint(commands_run, ==, 0);
    client_free(client);
    client_free(other);
}

int main(int argc, char **argv)
{
    int result;

    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN);
    qmp_events_init();
    large_text = times("x", 50000);
    g_test_add_func("/qmp/session/negotiation", test_negotiation);
    g_test_add_func("/qmp/session/forms-of-requests", test_forms);
    g_test_add_func("/qmp/session/id-is-echoed", test_id);
    g_test_add_func("/qmp/session/messages-in-any-pieces", test_pieces);
    g_test_add_func("/qmp/session/pretty", test_pretty);
    g_test_add_func("/qmp/session/events-follow-their-reply", test_events);
    g_test_add_func("/qmp/session/slow-reader-waits-alone", test_slow_reader);
    g_test_add_func("/qmp/session/slow-reader-on-pipes", test_slow_reader_on_pipes);
    g_test_add_func("/qmp/session/many-commands-at-once", test_many_at_once);
    g_test_add_func("/qmp/session/unread-events-end-it", test_events_unread);
    g_test_add_func("/qmp/session/unread-events-and-gone", test_unread_and_gone);
    g_test_add_func("/qmp/session/half-closed", test_half_closed);
    g_test_add_func("/qmp/session/client-vanishes", test_vanished);
    g_test_add_func("/qmp/session/freed-with-output-pending", test_drain_at_end);
    g_test_add_func("/qmp/session/stop-takes-no-more", test_stop);
    result = g_test_run();
    g_free(large_text);
    return result;
}
