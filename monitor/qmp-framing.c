/* SPDX-License-Identifier: MIT */
/*
 * Brackets and braces are counted apart and not matched against each other: a message ends where
 * both counts are zero or one is below. That its text makes sense is then the parser's business.
 */
#include "qmp-framing.h"

#include "qapi/json.h"
#include "qmp-lexer.h"
#include "util/error.h"

/* As much of a stray token as an error shows. */
#define STRAY_SHOWN_MAX 256

struct QmpFraming {
    GString *input;  /* pushed */
    size_t consumed; /* bytes of `input` that have been looked at */

    QmpLexerState lexer;
    GString *text;             /* of the message so far */
    size_t token_start;        /* where in `text` the present token begins */
    unsigned char token_first; /* its first byte, also when that is not kept */
    unsigned tokens;
    int braces, brackets;
    bool discarding; /* a limit was exceeded: only the message's end is of interest */
};

QmpFraming *qmp_framing_new(void)
{
    QmpFraming *framing = g_new0(QmpFraming, 1);

    framing->input = g_string_new(NULL);
    framing->text = g_string_new(NULL);
    return framing;
}

void qmp_framing_free(QmpFraming *framing)
{
    if (!framing) {
        return;
    }
    g_string_free(framing->input, true);
    g_string_free(framing->text, true);
    g_free(framing);
}

void qmp_framing_push(QmpFraming *framing, const void *bytes, size_t len)
{
    g_string_erase(framing->input, 0, framing->consumed);
    framing->consumed = 0;
    g_string_append_len(framing->input, bytes, len);
}

bool qmp_framing_has_input(const QmpFraming *framing)
{
    return framing->consumed < framing->input->len;
}

/* Begin the next message. A buffer that grew for a large one is given back. */
static void reset_message(QmpFraming *framing)
{
    if (framing->text->allocated_len > 64 * 1024) {
        g_string_free(framing->text, true);
        framing->text = g_string_new(NULL);
    }
    g_string_truncate(framing->text, 0);
    framing->token_start = 0;
    framing->tokens = 0;
    framing->braces = 0;
    framing->brackets = 0;
    framing->discarding = false;
}

static void keep_byte(QmpFraming *framing, unsigned char byte)
{
    if (!framing->discarding || framing->text->len < STRAY_SHOWN_MAX) {
        g_string_append_c(framing->text, (char)byte);
    }
}

static void set_stray_error(QmpFraming *framing, GError **error)
{
    GString *text = framing->text;
    g_autofree char *shown = NULL;

    /* An embedded NUL ends what is shown, as does the limit. */
    g_string_truncate(text, MIN(text->len, framing->token_start + STRAY_SHOWN_MAX));
    shown = g_utf8_make_valid(text->str + framing->token_start, -1);
    merino_error(error, "JSON parse error, stray '%s'", shown);
}

static const char *limit_exceeded(const QmpFraming *framing)
{
    if (framing->text->len > QMP_MAX_MESSAGE_BYTES) {
        return "JSON token size limit exceeded";
    }
    if (framing->tokens > QMP_MAX_MESSAGE_TOKENS) {
        return "JSON token count limit exceeded";
    }
    if (framing->braces + framing->brackets > QMP_MAX_NESTING) {
        return "JSON nesting depth limit exceeded";
    }
    return NULL;
}

static QmpFramingResult check_limits(QmpFraming *framing, GError **error)
{
    const char *words = framing->discarding ? NULL : limit_exceeded(framing);

    if (!words) {
        return QMP_FRAMING_MORE;
    }
    merino_error(error, "%s", words);
    framing->discarding = true;
    g_string_truncate(framing->text, 0);
    framing->token_start = 0;
    return QMP_FRAMING_ERROR;
}

static bool message_is_complete(const QmpFraming *framing)
{
    return framing->braces < 0 || framing->brackets < 0 ||
           (framing->braces == 0 && framing->brackets == 0);
}

static QmpFramingResult finish_message(QmpFraming *framing, json_t **ret_message, GError **error)
{
    bool discarded = framing->discarding;
    json_t *message = NULL;

    if (!discarded) {
        message = qapi_json_parse(framing->text->str, framing->text->len, error);
    }
    reset_message(framing);
    if (discarded) {
        return QMP_FRAMING_MORE;
    }
    if (!message) {
        return QMP_FRAMING_ERROR;
    }
    *ret_message = message;
    return QMP_FRAMING_MESSAGE;
}

/* A token is complete. */
static QmpFramingResult take_token(QmpFraming *framing, json_t **ret_message, GError **error)
{
    switch (framing->token_first) {
    case '{':
        framing->braces++;
        break;
    case '}':
        framing->braces--;
        break;
    case '[':
        framing->brackets++;
        break;
    case ']':
        framing->brackets--;
        break;
    default:
        break;
    }
    framing->tokens++;
    if (message_is_complete(framing)) {
        return finish_message(framing, ret_message, error);
    }
    if (framing->discarding) {
        g_string_truncate(framing->text, 0);
    }
    framing->token_start = framing->text->len;
    return check_limits(framing, error);
}

static QmpFramingResult take_byte(QmpFraming *framing, unsigned char byte, json_t **ret_message,
                                  GError **error)
{
    bool inside = qmp_lexer_is_inside(framing->lexer);
    QmpLexerVerdict verdict = qmp_lexer_feed(&framing->lexer, byte);

    if (!inside) {
        framing->token_first = byte;
    }
    if (verdict != QMP_LEXER_BEFORE) {
        framing->consumed++;
    }
    switch (verdict) {
    case QMP_LEXER_BLANK:
        /* White space parts tokens and is not kept twice. */
        if (framing->text->len > 0 && framing->text->str[framing->text->len - 1] != ' ') {
            keep_byte(framing, ' ');
            framing->token_start = framing->text->len;
        }
        return QMP_FRAMING_MORE;
    case QMP_LEXER_PART:
        keep_byte(framing, byte);
        return check_limits(framing, error);
    case QMP_LEXER_LAST:
        keep_byte(framing, byte);
        return take_token(framing, ret_message, error);
    case QMP_LEXER_BEFORE:
        return take_token(framing, ret_message, error);
    case QMP_LEXER_STRAY:
        keep_byte(framing, byte);
        set_stray_error(framing, error);
        reset_message(framing);
        return QMP_FRAMING_ERROR;
    }
    g_assert_not_reached();
}

QmpFramingResult qmp_framing_next(QmpFraming *framing, json_t **ret_message, GError **error)
{
    QmpFramingResult result = QMP_FRAMING_MORE;

    while (result == QMP_FRAMING_MORE && framing->consumed < framing->input->len) {
        result = take_byte(framing, (unsigned char)framing->input->str[framing->consumed],
                           ret_message, error);
    }
    return result;
}
