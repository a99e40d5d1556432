/* SPDX-License-Identifier: MIT */
/*
 * A stream of QMP text into messages. In whatever pieces the stream arrives, the messages and
 * errors are the same; and a message that is printed and read again is the same message.
 */
#include "fuzz.h"
#include "qapi/json.h"
#include "qmp-framing.h"
#include "text.h"

#include <string.h>

static json_t *print_and_parse(const json_t *message, bool pretty)
{
    g_autofree char *text = qapi_json_text(message, pretty);
    json_t *again = qapi_json_parse(text, strlen(text), NULL);

    g_assert(again);
    return again;
}

/* A number may lose its fraction of zero in print, so prints are compared. */
static void check_message(const json_t *message)
{
    json_auto_t *once = print_and_parse(message, false);
    json_auto_t *pretty = print_and_parse(message, true);
    json_auto_t *twice = print_and_parse(once, false);

    g_assert(json_equal(once, pretty) && json_equal(once, twice));
}

typedef void MessageFn(const json_t *message);

/* Take all there is to take and write it down; `look`, if any, sees the messages. */
static void pull(QmpFraming *framing, GString *transcript, MessageFn *look)
{
    QmpFramingResult result;

    do {
        json_t *message = NULL;
        GError *error = NULL;

        result = qmp_framing_next(framing, &message, &error);
        g_assert((result == QMP_FRAMING_MESSAGE) == (message != NULL));
        fuzz_check_outcome(result != QMP_FRAMING_ERROR, error ? g_error_copy(error) : NULL);
        if (message) {
            g_autofree char *text = qapi_json_text(message, false);

            g_string_append_printf(transcript, "message %s\n", text);
            if (look) {
                look(message);
            }
            json_decref(message);
        }
        if (error) {
            g_string_append_printf(transcript, "error %s\n", error->message);
            g_error_free(error);
        }
    } while (result != QMP_FRAMING_MORE);
    g_assert(!qmp_framing_has_input(framing));
}

/* What becomes of the stream when it comes in pieces of 1 to `max_piece` bytes. */
static char *transcribe(const uint8_t *data, size_t size, size_t max_piece, MessageFn *look)
{
    g_autoptr(QmpFraming) framing = qmp_framing_new();
    GString *transcript = g_string_new(NULL);

    for (size_t done = 0, piece; done < size; done += piece) {
        piece = MIN(size - done, 1 + data[done] % max_piece);
        qmp_framing_push(framing, data + done, piece);
        pull(framing, transcript, look);
    }
    return g_string_free(transcript, false);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree char *bytewise = transcribe(data, size, 1, NULL);
    g_autofree char *piecewise = transcribe(data, size, 16, NULL);
    g_autofree char *large = transcribe(data, size, 256, check_message);

    g_assert_cmpstr(bytewise, ==, piecewise);
    g_assert_cmpstr(bytewise, ==, large);
    return 0;
}
