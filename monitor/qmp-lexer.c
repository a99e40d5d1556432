/* SPDX-License-Identifier: MIT */
#include "qmp-lexer.h"

#include <glib.h>
#include <string.h>

static bool is_structural(unsigned char byte)
{
    return byte && strchr("{}[]:,", byte);
}

static bool is_blank(unsigned char byte)
{
    return byte && strchr(" \t\r\n", byte);
}

static bool is_control(unsigned char byte)
{
    return byte < 0x20;
}

static bool is_never_utf8(unsigned char byte)
{
    return byte >= 0xfe;
}

static QmpLexerVerdict go_on(QmpLexerState *state, QmpLexerState next)
{
    *state = next;
    return QMP_LEXER_PART;
}

static QmpLexerVerdict finish(QmpLexerState *state, QmpLexerVerdict verdict)
{
    *state = verdict == QMP_LEXER_STRAY ? QMP_LEXER_SKIPPING : QMP_LEXER_BETWEEN;
    return verdict;
}

static QmpLexerVerdict begin_token(QmpLexerState *state, unsigned char byte)
{
    *state = QMP_LEXER_BETWEEN;
    if (is_structural(byte)) {
        return QMP_LEXER_LAST;
    }
    if (is_blank(byte)) {
        return QMP_LEXER_BLANK;
    }
    if (g_ascii_islower(byte)) {
        return go_on(state, QMP_LEXER_KEYWORD);
    }
    switch (byte) {
    case '"':
        return go_on(state, QMP_LEXER_STRING_DOUBLE);
    case '\'':
        return go_on(state, QMP_LEXER_STRING_SINGLE);
    case '-':
        return go_on(state, QMP_LEXER_MINUS);
    case '0':
        return go_on(state, QMP_LEXER_ZERO);
    case '1' ... '9':
        return go_on(state, QMP_LEXER_DIGITS);
    default:
        return finish(state, QMP_LEXER_STRAY);
    }
}

static QmpLexerVerdict skip(QmpLexerState *state, unsigned char byte)
{
    if (is_structural(byte) || is_never_utf8(byte) || (is_control(byte) && byte != '\t')) {
        return begin_token(state, byte);
    }
    return QMP_LEXER_BLANK;
}

static QmpLexerVerdict in_string(QmpLexerState *state, unsigned char byte, char quote,
                                 QmpLexerState escape)
{
    if (is_control(byte) || is_never_utf8(byte)) {
        return finish(state, QMP_LEXER_STRAY);
    }
    if (byte == (unsigned char)quote) {
        return finish(state, QMP_LEXER_LAST);
    }
    return byte == '\\' ? go_on(state, escape) : QMP_LEXER_PART;
}

static QmpLexerVerdict in_escape(QmpLexerState *state, unsigned char byte, QmpLexerState string)
{
    if (is_control(byte) || is_never_utf8(byte)) {
        return finish(state, QMP_LEXER_STRAY);
    }
    return go_on(state, string);
}

/* A place in a number where a digit must follow. */
static QmpLexerVerdict needs_digit(QmpLexerState *state, unsigned char byte, QmpLexerState next)
{
    return g_ascii_isdigit(byte) ? go_on(state, next) : finish(state, QMP_LEXER_STRAY);
}

/* A place where a number may end. */
static QmpLexerVerdict may_end(QmpLexerState *state, unsigned char byte)
{
    bool exponent = *state == QMP_LEXER_EXPONENT_DIGITS;
    bool fraction = *state == QMP_LEXER_FRACTION;

    if (g_ascii_isdigit(byte)) {
        return *state == QMP_LEXER_ZERO ? finish(state, QMP_LEXER_STRAY) : QMP_LEXER_PART;
    }
    if (byte == '.' && !fraction && !exponent) {
        return go_on(state, QMP_LEXER_POINT);
    }
    if ((byte == 'e' || byte == 'E') && !exponent) {
        return go_on(state, QMP_LEXER_EXPONENT);
    }
    return finish(state, QMP_LEXER_BEFORE);
}

QmpLexerVerdict qmp_lexer_feed(QmpLexerState *state, unsigned char byte)
{
    switch (*state) {
    case QMP_LEXER_BETWEEN:
        return begin_token(state, byte);
    case QMP_LEXER_SKIPPING:
        return skip(state, byte);
    case QMP_LEXER_STRING_DOUBLE:
        return in_string(state, byte, '"', QMP_LEXER_ESCAPE_DOUBLE);
    case QMP_LEXER_STRING_SINGLE:
        return in_string(state, byte, '\'', QMP_LEXER_ESCAPE_SINGLE);
    case QMP_LEXER_ESCAPE_DOUBLE:
        return in_escape(state, byte, QMP_LEXER_STRING_DOUBLE);
    case QMP_LEXER_ESCAPE_SINGLE:
        return in_escape(state, byte, QMP_LEXER_STRING_SINGLE);
    case QMP_LEXER_MINUS:
        return byte == '0' ? go_on(state, QMP_LEXER_ZERO)
                           : needs_digit(state, byte, QMP_LEXER_DIGITS);
    case QMP_LEXER_POINT:
        return needs_digit(state, byte, QMP_LEXER_FRACTION);
    case QMP_LEXER_EXPONENT:
        return byte == '+' || byte == '-' ? go_on(state, QMP_LEXER_EXPONENT_SIGN)
                                          : needs_digit(state, byte, QMP_LEXER_EXPONENT_DIGITS);
    case QMP_LEXER_EXPONENT_SIGN:
        return needs_digit(state, byte, QMP_LEXER_EXPONENT_DIGITS);
    case QMP_LEXER_ZERO:
    case QMP_LEXER_DIGITS:
    case QMP_LEXER_FRACTION:
    case QMP_LEXER_EXPONENT_DIGITS:
        return may_end(state, byte);
    case QMP_LEXER_KEYWORD:
        return g_ascii_islower(byte) ? QMP_LEXER_PART : finish(state, QMP_LEXER_BEFORE);
    }
    g_assert_not_reached();
}
