/* SPDX-License-Identifier: MIT */
#include "qmp-session.h"

#include "events-internal.h"
#include "qapi/json.h"
#include "qmp-framing.h"
#include "qmp-output.h"
#include "qmp-request.h"
#include "util/error.h"
#include "version.h"

#include <errno.h>
#include <glib-unix.h>
#include <jansson.h>
#include <string.h>
#include <unistd.h>

#define READ_BYTES      (64 * 1024)
#define MESSAGES_A_TURN 16

typedef enum SessionState {
    SESSION_NEGOTIATING,
    SESSION_RUNNING,
    SESSION_CLOSING,
} SessionState;

typedef struct StateRules {
    bool takes_messages;
    bool gets_events;
    /* Why qmp_capabilities, and any other command, is refused; NULL: it is not. */
    const char *refuses_negotiation;
    const char *refuses_commands;
} StateRules;

static const StateRules state_rules[] = {
    [SESSION_NEGOTIATING] = { .takes_messages = true,
                              .refuses_commands =
                                  "Expecting capabilities negotiation with 'qmp_capabilities'" },
    [SESSION_RUNNING] = { .takes_messages = true,
                          .gets_events = true,
                          .refuses_negotiation =
                              "Capabilities negotiation is already complete, command ignored" },
    [SESSION_CLOSING] = { .takes_messages = false },
};

struct QmpSession {
    QmpSessionOptions options;
    SessionState state;
    QmpFraming *framing;
    QmpOutput *output;
    guint read_source; /* waits for input */
    guint turn_source; /* goes on with input that has been read, or ends the session */
};

static GList *sessions;
static bool sessions_stopped;

static void set_turn(QmpSession *session);

static void session_send(QmpSession *session, const json_t *message)
{
    g_autofree char *text = qapi_json_text(message, session->options.pretty);
    g_autofree char *line = g_strconcat(text, "\r\n", NULL);

    qmp_output_write(session->output, line, strlen(line));
}

static void session_set_state(QmpSession *session, SessionState state)
{
    g_assert(state > session->state);
    session->state = state;
    set_turn(session);
}

/* --- commands --- */

static json_t *session_execute(QmpSession *session, const QmpRequest *request, GError **error)
{
    const StateRules *rules = &state_rules[session->state];
    bool negotiation = g_str_equal(request->command, "qmp_capabilities");
    const char *refusal = negotiation ? rules->refuses_negotiation : rules->refuses_commands;
    json_t *value = NULL;

    if (refusal) {
        merino_error_class(error, MERINO_ERROR_COMMAND_NOT_FOUND, "%s", refusal);
        return NULL;
    }
    if (qapi_command_run(session->options.commands, request->command, request->arguments, &value,
                         error) &&
        negotiation) {
        session_set_state(session, SESSION_RUNNING);
    }
    return value;
}

/* `message` is consumed; NULL stands for text that was none, because of `error`. */
static void session_answer(QmpSession *session, json_t *message, GError *error)
{
    QmpRequest request = { 0 };
    json_t *reply = NULL;
    json_t *value = NULL;

    qmp_events_hold();
    if (message && qmp_request_parse(message, &request, &error)) {
        value = session_execute(session, &request, &error);
    }
    if (value) {
        reply = json_pack("{s:o}", "return", value);
    } else {
        reply = json_pack("{s:o}", "error", qapi_error_encode(error));
        g_error_free(error);
    }
    if (request.id) {
        json_object_set(reply, "id", request.id);
    }
    session_send(session, reply);
    json_decref(reply);
    json_decref(message);
    qmp_events_release();
}

/* --- input --- */

static bool session_may_take(const QmpSession *session)
{
    return state_rules[session->state].takes_messages && !sessions_stopped &&
           qmp_output_pending(session->output) <= QMP_BACKLOG_MAX;
}

/* Handle some of the messages that have been read. */
static void session_take_messages(QmpSession *session)
{
    for (unsigned n = 0; n < MESSAGES_A_TURN && session_may_take(session); n++) {
        json_t *message = NULL;
        GError *error = NULL;

        if (qmp_framing_next(session->framing, &message, &error) == QMP_FRAMING_MORE) {
            return;
        }
        session_answer(session, message, error);
    }
}

static bool session_is_over(const QmpSession *session)
{
    return qmp_output_failed(session->output) ||
           (session->state == SESSION_CLOSING && qmp_output_pending(session->output) == 0);
}

/* Only when all that was read before has been taken, so at the end of the stream nothing is left.
 */
static void session_read(QmpSession *session)
{
    g_autofree char *bytes = NULL;
    ssize_t got;

    /* The session may have been given up since the loop found something to read. */
    if (session->state == SESSION_CLOSING) {
        return;
    }
    bytes = g_malloc(READ_BYTES);
    got = read(session->options.in_fd, bytes, READ_BYTES);
    if (got > 0) {
        qmp_framing_push(session->framing, bytes, got);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        session_set_state(session, SESSION_CLOSING);
    }
}

static gboolean on_readable(gint fd, GIOCondition condition, gpointer opaque);

/* Wait for input exactly while there is none to go on with. */
static void set_reading(QmpSession *session)
{
    bool want = session_may_take(session) && !qmp_framing_has_input(session->framing);

    if (want && !session->read_source) {
        session->read_source = g_unix_fd_add(session->options.in_fd, G_IO_IN | G_IO_HUP | G_IO_ERR,
                                             on_readable, session);
    } else if (!want && session->read_source) {
        g_source_remove(session->read_source);
        session->read_source = 0;
    }
}

/* One turn: take messages, then arrange for what comes next. */
static void session_turn(QmpSession *session)
{
    session_take_messages(session);
    set_reading(session);
    if (session_is_over(session) ||
        (session_may_take(session) && qmp_framing_has_input(session->framing))) {
        set_turn(session);
    }
}

static void session_end(QmpSession *session)
{
    QmpSessionEnded *ended = session->options.ended;
    void *opaque = session->options.opaque;

    qmp_session_free(session, 0);
    if (ended) {
        ended(opaque);
    }
}

static gboolean on_turn(gpointer opaque)
{
    QmpSession *session = opaque;

    session->turn_source = 0;
    if (session_is_over(session)) {
        session_end(session);
    } else {
        session_turn(session);
    }
    return G_SOURCE_REMOVE;
}

static void set_turn(QmpSession *session)
{
    if (!session->turn_source) {
        session->turn_source = g_idle_add_full(G_PRIORITY_DEFAULT, on_turn, session, NULL);
    }
}

static gboolean on_readable(gint fd, GIOCondition condition, gpointer opaque)
{
    QmpSession *session = opaque;

    session_read(session);
    session_turn(session);
    return G_SOURCE_CONTINUE;
}

static void on_output_progress(void *opaque)
{
    set_turn(opaque);
}

/* --- life --- */

QmpSession *qmp_session_new(const QmpSessionOptions *options)
{
    QmpSession *session = g_new0(QmpSession, 1);
    json_t *greeting = qmp_greeting();

    session->options = *options;
    session->framing = qmp_framing_new();
    session->output = qmp_output_new(options->out_fd, on_output_progress, session);
    sessions = g_list_append(sessions, session);
    session_send(session, greeting);
    json_decref(greeting);
    set_reading(session);
    return session;
}

static void remove_source(guint *source)
{
    if (*source) {
        g_source_remove(*source);
        *source = 0;
    }
}

void qmp_session_free(QmpSession *session, int64_t deadline_us)
{
    if (!session) {
        return;
    }
    qmp_output_drain(session->output, deadline_us);
    remove_source(&session->read_source);
    remove_source(&session->turn_source);
    sessions = g_list_remove(sessions, session);
    qmp_output_free(session->output);
    qmp_framing_free(session->framing);
    g_free(session);
}

/* --- all sessions --- */

static void session_send_event(QmpSession *session, const json_t *event)
{
    if (!state_rules[session->state].gets_events) {
        return;
    }
    if (qmp_output_pending(session->output) > QMP_EVENTS_MAX) {
        g_warning("A QMP client does not read its events; its session is closed");
        qmp_output_abandon(session->output);
        session_set_state(session, SESSION_CLOSING);
        return;
    }
    session_send(session, event);
}

void qmp_sessions_broadcast(const json_t *event)
{
    for (GList *entry = sessions; entry; entry = entry->next) {
        session_send_event(entry->data, event);
    }
}

void qmp_sessions_stop(void)
{
    sessions_stopped = true;
}
