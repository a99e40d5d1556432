/* SPDX-License-Identifier: MIT */
/*
 * Framing: from the bytes that arrive to the messages that are in them.
 *
 * A message is one JSON value; nothing but optional white space stands between messages. Bytes are
 * pushed as they come, in pieces of any size; messages are then pulled one by one, so whoever pulls
 * decides how many he handles before others have their turn. What is pushed is kept until it has
 * been looked at.
 *
 * Everything that can be wrong becomes an error in QEMU's words, and what follows it is read as a
 * new message (qmp-lexer.h says where it begins). A message that exceeds a limit makes one error
 * and is then read to its end without being kept.
 */
#ifndef MERINO_MONITOR_QMP_FRAMING_H
#define MERINO_MONITOR_QMP_FRAMING_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

/* Limits of one message: bytes of text, tokens, and arrays and objects inside one another. A
 * transaction of ten thousand actions stays well below them; decoded, no message that stays below
 * takes more than about 200 MiB. */
#define QMP_MAX_MESSAGE_BYTES  (16 << 20)
#define QMP_MAX_MESSAGE_TOKENS (1 << 20)
#define QMP_MAX_NESTING        1024

typedef struct QmpFraming QmpFraming;

typedef enum QmpFramingResult {
    QMP_FRAMING_MORE, /* all that was pushed has been looked at */
    QMP_FRAMING_MESSAGE,
    QMP_FRAMING_ERROR,
} QmpFramingResult;

QmpFraming *qmp_framing_new(void);
void qmp_framing_free(QmpFraming *framing);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(QmpFraming, qmp_framing_free)

void qmp_framing_push(QmpFraming *framing, const void *bytes, size_t len);

/* Pull the next message, which the caller owns, or the next error. Outputs are written only with
 * the result they belong to. */
QmpFramingResult qmp_framing_next(QmpFraming *framing, json_t **ret_message, GError **error);

/* Whether something pushed has not been looked at yet. */
bool qmp_framing_has_input(const QmpFraming *framing);

#endif
