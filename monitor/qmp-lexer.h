/* SPDX-License-Identifier: MIT */
/*
 * Where the tokens of a QMP stream end.
 *
 * The lexer is fed one byte after another and says when a token is complete. It knows the words
 * of JSON and nothing of their grammar; strings may stand in double or single quotes. What is
 * inside of a string is looked at only as far as its end depends on it.
 *
 * A byte that cannot go on with a token makes the token stray. After that the lexer skips what
 * follows, up to a byte where a new message may begin: one of {}[]:, or the end of a line.
 * The bytes 0xFE and 0xFF occur in no UTF-8 text and are stray wherever they stand, so a client
 * that has lost track sends 0xFF to begin afresh.
 */
#ifndef MERINO_MONITOR_QMP_LEXER_H
#define MERINO_MONITOR_QMP_LEXER_H

#include <stdbool.h>

typedef enum QmpLexerState {
    QMP_LEXER_BETWEEN, /* before a token */
    QMP_LEXER_SKIPPING,
    QMP_LEXER_STRING_DOUBLE,
    QMP_LEXER_STRING_SINGLE,
    QMP_LEXER_ESCAPE_DOUBLE,
    QMP_LEXER_ESCAPE_SINGLE,
    QMP_LEXER_MINUS,
    QMP_LEXER_ZERO,
    QMP_LEXER_DIGITS,
    QMP_LEXER_POINT,
    QMP_LEXER_FRACTION,
    QMP_LEXER_EXPONENT,
    QMP_LEXER_EXPONENT_SIGN,
    QMP_LEXER_EXPONENT_DIGITS,
    QMP_LEXER_KEYWORD,
} QmpLexerState;

/* Whether the byte before belongs to a token that may go on. */
static inline bool qmp_lexer_is_inside(QmpLexerState state)
{
    return state != QMP_LEXER_BETWEEN && state != QMP_LEXER_SKIPPING;
}

typedef enum QmpLexerVerdict {
    QMP_LEXER_BLANK,  /* the byte belongs to no token */
    QMP_LEXER_PART,   /* the byte belongs to a token that may go on */
    QMP_LEXER_LAST,   /* the byte is the last of a token */
    QMP_LEXER_BEFORE, /* a token ended before the byte, which must be fed again */
    QMP_LEXER_STRAY,  /* the byte makes the token stray */
} QmpLexerVerdict;

/* Look at the next byte of the stream. `*state` begins as QMP_LEXER_BETWEEN. */
QmpLexerVerdict qmp_lexer_feed(QmpLexerState *state, unsigned char byte);

#endif
