/* SPDX-License-Identifier: MIT */
#include "block/export/nbd/protocol.h"
#include "fuzz.h"
#include "nbd-client.h"

#include <string.h>

#define MAX_CONTEXTS 16

/* Longer ones are done in steps, between which replies to other requests may leave. */
#define MAX_STEP (256 << 20)

typedef struct Bytes {
    const guint8 *at;
    gsize left;
} Bytes;

typedef struct Judge {
    Bytes sent, received; /* what has not been looked at */
    bool cut;             /* what follows cannot be judged */
    bool tls;             /* the server asks for it */

    /* What was negotiated. */
    bool fixed_newstyle, no_zeroes, structured, extended;
    guint64 size; /* of the export that the client was told of last */
    guint16 flags;
    Bytes contexts_of; /* the name of an export */
    guint32 contexts[MAX_CONTEXTS];
    unsigned n_contexts;
} Judge;

/* What the stream does next. Once the client has hung up, the judge is done where bytes end. */
typedef enum Next {
    NEXT_OPTION,
    NEXT_REQUEST,
    NEXT_END,
} Next;

#define check(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fuzz_fail(__VA_ARGS__);                                                                \
        }                                                                                          \
    } while (0)

/* NULL when there are fewer. */
static const guint8 *take(Bytes *bytes, guint64 n)
{
    const guint8 *start = bytes->at;

    if (bytes->left < n) {
        return NULL;
    }
    bytes->at += n;
    bytes->left -= n;
    return start;
}

/* What the server must have sent; NULL when the client has not waited for it. */
static const guint8 *expect(Judge *judge, guint64 n, const char *what)
{
    const guint8 *bytes = take(&judge->received, n);

    check(bytes || judge->cut, "%s is cut short", what);
    return bytes;
}

/* --- negotiation --- */

static void judge_info(Judge *judge, guint32 option, guint32 type, Bytes reply)
{
    bool lists_contexts = option == NBD_OPT_SET_META_CONTEXT || option == NBD_OPT_LIST_META_CONTEXT;

    check(type != NBD_REP_SERVER || option == NBD_OPT_LIST, "SERVER to option %u", option);
    check(type != NBD_REP_META_CONTEXT || lists_contexts, "META_CONTEXT to option %u", option);
    check(type != NBD_REP_INFO || option == NBD_OPT_GO || option == NBD_OPT_INFO,
          "INFO to option %u", option);
    check(type >= NBD_REP_SERVER && type <= NBD_REP_META_CONTEXT, "reply of type %#x", type);
    if (type == NBD_REP_SERVER) {
        check(reply.left >= 4 && nbd_get32(reply.at) <= reply.left - 4, "SERVER is malformed");
    } else if (type == NBD_REP_META_CONTEXT) {
        check(reply.left > 4, "META_CONTEXT is malformed");
        if (option == NBD_OPT_SET_META_CONTEXT) {
            check(judge->n_contexts < MAX_CONTEXTS, "more contexts than there are");
            judge->contexts[judge->n_contexts++] = nbd_get32(reply.at);
        }
    } else {
        check(reply.left >= 2, "INFO is malformed");
        if (nbd_get16(reply.at) == NBD_INFO_EXPORT) {
            check(reply.left == 12, "INFO_EXPORT is malformed");
            judge->size = nbd_get64(reply.at + 2);
            judge->flags = nbd_get16(reply.at + 10);
        }
    }
}

/* All replies to one option. False when there are no more to be looked at. */
static bool judge_option_replies(Judge *judge, guint32 option, bool *ret_ack)
{
    for (;;) {
        const guint8 *header = expect(judge, NBD_OPTION_REPLY_BYTES, "an option's reply");
        guint32 type, length;
        Bytes reply;

        if (!header) {
            return false;
        }
        check(nbd_get64(header) == NBD_OPTION_REPLY_MAGIC, "an option's reply has no magic");
        check(nbd_get32(header + 8) == option, "a reply to another option than %u", option);
        type = nbd_get32(header + 12);
        length = nbd_get32(header + 16);
        reply = (Bytes){ expect(judge, length, "an option's reply"), length };
        if (!reply.at) {
            return false;
        }
        if (type == NBD_REP_ACK || (type & NBD_REP_FLAG_ERROR)) {
            check(type != NBD_REP_ACK || length == 0, "ACK has data");
            *ret_ack = type == NBD_REP_ACK;
            return true;
        }
        judge_info(judge, option, type, reply);
    }
}

/* The name that the data of GO, INFO and the options on contexts begins with. */
static Bytes name_in(Bytes data)
{
    const guint8 *length = take(&data, 4);

    return (Bytes){ data.at, length ? MIN(nbd_get32(length), data.left) : 0 };
}

/* The client has an export of this name. Contexts that were selected for another are none. */
static Next begin_requests(Judge *judge, Bytes name)
{
    if (name.left != judge->contexts_of.left ||
        memcmp(name.at, judge->contexts_of.at, name.left) != 0) {
        judge->n_contexts = 0;
    }
    return NEXT_REQUEST;
}

/* The server answers with an export, or not at all. */
static Next judge_export_name(Judge *judge, Bytes name)
{
    const guint8 *answer;

    if (judge->received.left == 0) {
        return NEXT_END;
    }
    check(!judge->tls, "EXPORT_NAME is granted in the clear");
    answer = expect(judge, NBD_EXPORT_NAME_BYTES + (judge->no_zeroes ? 0 : NBD_EXPORT_NAME_ZEROES),
                    "the answer to EXPORT_NAME");
    if (!answer) {
        return NEXT_END;
    }
    judge->size = nbd_get64(answer);
    judge->flags = nbd_get16(answer + 8);
    return begin_requests(judge, name);
}

static Next judge_answered_option(Judge *judge, guint32 option, Bytes data)
{
    bool ack = false;

    if (option == NBD_OPT_SET_META_CONTEXT) {
        judge->n_contexts = 0;
        judge->contexts_of = name_in(data);
    }
    if (!judge_option_replies(judge, option, &ack)) {
        return NEXT_END;
    }
    if (!ack) {
        return judge->tls && option == NBD_OPT_STARTTLS ? NEXT_END : NEXT_OPTION;
    }
    check(!judge->tls || option == NBD_OPT_ABORT || option == NBD_OPT_STARTTLS,
          "option %u is granted in the clear", option);
    switch (option) {
    case NBD_OPT_STARTTLS:
        check(judge->tls && data.left == 0, "STARTTLS is granted");
        judge->cut = true;
        return NEXT_END;
    case NBD_OPT_ABORT:
        return NEXT_END;
    case NBD_OPT_GO:
        return begin_requests(judge, name_in(data));
    case NBD_OPT_EXTENDED_HEADERS:
        judge->extended = true;
        judge->structured = true;
        return NEXT_OPTION;
    case NBD_OPT_STRUCTURED_REPLY:
        judge->structured = true;
        return NEXT_OPTION;
    default:
        return NEXT_OPTION;
    }
}

static Next judge_option(Judge *judge)
{
    const guint8 *header = take(&judge->sent, NBD_OPTION_BYTES);
    guint32 option, length;
    Bytes data;

    if (!header || nbd_get64(header) != NBD_OPTION_MAGIC) {
        return NEXT_END;
    }
    option = nbd_get32(header + 8);
    length = nbd_get32(header + 12);
    data = (Bytes){ take(&judge->sent, length), length };
    if (!data.at || length > NBD_MAX_OPTION_SKIP ||
        (!judge->fixed_newstyle && option != NBD_OPT_EXPORT_NAME)) {
        return NEXT_END;
    }
    return option == NBD_OPT_EXPORT_NAME ? judge_export_name(judge, data)
                                         : judge_answered_option(judge, option, data);
}

static Next judge_greeting(Judge *judge)
{
    const guint8 *greeting = expect(judge, NBD_GREETING_BYTES, "the greeting");
    const guint8 *answer = take(&judge->sent, NBD_CLIENT_FLAGS_BYTES);
    guint32 flags;

    if (!greeting || !answer) {
        return NEXT_END;
    }
    check(nbd_get64(greeting) == NBD_MAGIC && nbd_get64(greeting + 8) == NBD_OPTION_MAGIC,
          "the greeting has no magic");
    flags = nbd_get32(answer);
    judge->fixed_newstyle = flags & NBD_FLAG_FIXED_NEWSTYLE;
    judge->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    return flags & ~(guint32)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES) ? NEXT_END
                                                                            : NEXT_OPTION;
}

/* --- requests --- */

/* One request and what has come of it so far. */
typedef struct Answer {
    NbdRequestHeader request;
    guint64 next; /* READ: where the next piece of data begins */
    guint64 seen; /* BLOCK_STATUS: a bit for each of the contexts */
    bool failed;
} Answer;

static bool has_payload_flag(const Judge *judge, const NbdRequestHeader *request)
{
    return judge->extended && (request->flags & NBD_CMD_FLAG_PAYLOAD_LEN);
}

static bool writes(guint16 command)
{
    return command == NBD_CMD_WRITE || command == NBD_CMD_TRIM || command == NBD_CMD_WRITE_ZEROES;
}

static bool is_beyond_end(const Judge *judge, const NbdRequestHeader *request)
{
    return request->command != NBD_CMD_FLUSH &&
           (request->offset > judge->size || request->length > judge->size - request->offset);
}

static bool must_fail(const Judge *judge, const NbdRequestHeader *request)
{
    if (request->command >= NBD_CMD__MAX ||
        (writes(request->command) && (judge->flags & NBD_FLAG_READ_ONLY)) ||
        (request->command == NBD_CMD_BLOCK_STATUS && judge->n_contexts == 0)) {
        return true;
    }
    return is_beyond_end(judge, request) &&
           !(request->command == NBD_CMD_BLOCK_STATUS && has_payload_flag(judge, request));
}

static bool must_succeed(const Judge *judge, const NbdRequestHeader *request)
{
    if (must_fail(judge, request) || request->flags) {
        return false;
    }
    switch (request->command) {
    case NBD_CMD_READ:
    case NBD_CMD_WRITE:
    case NBD_CMD_CACHE:
        return request->length <= NBD_MAX_PAYLOAD;
    case NBD_CMD_BLOCK_STATUS:
        return request->length > 0;
    default:
        return true;
    }
}

/* --- chunks --- */

static void judge_data(Answer *answer, guint64 offset, guint64 length)
{
    const NbdRequestHeader *request = &answer->request;

    check(request->command == NBD_CMD_READ, "data for command %u", request->command);
    check(offset == answer->next && length > 0 &&
              length <= request->offset + request->length - offset,
          "data of a read is out of place");
    answer->next += length;
}

static void judge_context(const Judge *judge, Answer *answer, guint32 context)
{
    for (unsigned i = 0; i < judge->n_contexts; i++) {
        if (judge->contexts[i] == context) {
            check(!(answer->seen & 1u << i), "context %u twice", context);
            answer->seen |= 1u << i;
            return;
        }
    }
    fuzz_fail("context %u was not selected", context);
}

static void judge_extents(const Judge *judge, Answer *answer, Bytes payload)
{
    const NbdRequestHeader *request = &answer->request;
    gsize extent_bytes = judge->extended ? NBD_EXTENT_EXT_BYTES : NBD_EXTENT_BYTES;
    gsize prefix_bytes = judge->extended ? NBD_BLOCK_STATUS_EXT_BYTES : NBD_BLOCK_STATUS_BYTES;
    const guint8 *prefix = take(&payload, prefix_bytes);
    guint64 left = has_payload_flag(judge, request) ? judge->size : request->length;
    gsize n = payload.left / extent_bytes;

    check(request->command == NBD_CMD_BLOCK_STATUS, "extents for command %u", request->command);
    check(prefix && n > 0 && n * extent_bytes == payload.left, "extents are malformed");
    check(!judge->extended || nbd_get32(prefix + 4) == n, "extents are miscounted");
    check(n == 1 || !(request->flags & NBD_CMD_FLAG_REQ_ONE), "more than one extent");
    judge_context(judge, answer, nbd_get32(prefix));
    for (; n > 0; n--) {
        const guint8 *extent = take(&payload, extent_bytes);
        guint64 length = judge->extended ? nbd_get64(extent) : nbd_get32(extent);

        check(length > 0 && length <= left, "an extent goes beyond the request");
        left -= length;
    }
}

static void judge_error(Answer *answer, Bytes payload, bool with_offset)
{
    const guint8 *head = take(&payload, NBD_ERROR_BYTES);
    gsize length = head ? nbd_get16(head + 4) : 0;

    check(head && nbd_get32(head) != NBD_SUCCESS, "an error is malformed");
    check(payload.left == length + (with_offset ? 8 : 0), "an error's message is malformed");
    answer->failed = true;
}

static void judge_chunk(const Judge *judge, Answer *answer, guint16 type, Bytes payload)
{
    switch (type) {
    case NBD_CHUNK_NONE:
        check(payload.left == 0, "an empty chunk is not empty");
        break;
    case NBD_CHUNK_OFFSET_DATA:
        check(payload.left > NBD_OFFSET_DATA_BYTES, "no data");
        judge_data(answer, nbd_get64(payload.at), payload.left - NBD_OFFSET_DATA_BYTES);
        break;
    case NBD_CHUNK_OFFSET_HOLE:
        check(payload.left == NBD_OFFSET_HOLE_BYTES, "a hole is malformed");
        judge_data(answer, nbd_get64(payload.at), nbd_get32(payload.at + 8));
        break;
    case NBD_CHUNK_BLOCK_STATUS:
    case NBD_CHUNK_BLOCK_STATUS_EXT:
        check((type == NBD_CHUNK_BLOCK_STATUS_EXT) == judge->extended, "extents of another form");
        judge_extents(judge, answer, payload);
        break;
    case NBD_CHUNK_ERROR:
    case NBD_CHUNK_ERROR_OFFSET:
        judge_error(answer, payload, type == NBD_CHUNK_ERROR_OFFSET);
        break;
    default:
        fuzz_fail("a chunk of type %#x", type);
    }
}

/* One chunk behind its magic. False when there is no more to be looked at. */
static bool take_chunk(Judge *judge, Answer *answer, bool *ret_done)
{
    const guint8 *header = expect(judge, nbd_chunk_bytes(judge->extended) - 4, "a chunk");
    guint16 flags, type;
    guint64 length;
    Bytes payload;

    if (!header) {
        return false;
    }
    flags = nbd_get16(header);
    type = nbd_get16(header + 2);
    check(nbd_get64(header + 4) == answer->request.cookie, "a chunk of another request");
    if (judge->extended) {
        check(nbd_get64(header + 12) == answer->request.offset, "a chunk of another offset");
    }
    length = judge->extended ? nbd_get64(header + 20) : nbd_get32(header + 12);
    payload = (Bytes){ expect(judge, length, "a chunk"), length };
    if (!payload.at) {
        return false;
    }
    check(!(flags & ~NBD_CHUNK_FLAG_DONE), "a chunk's flags are %#x", flags);
    check(type != NBD_CHUNK_NONE || flags, "an empty chunk is not the last");
    judge_chunk(judge, answer, type, payload);
    *ret_done = flags & NBD_CHUNK_FLAG_DONE;
    return true;
}

static bool take_simple(Judge *judge, Answer *answer)
{
    const guint8 *header = expect(judge, NBD_SIMPLE_REPLY_BYTES - 4, "a simple reply");
    bool reads = answer->request.command == NBD_CMD_READ;

    if (!header) {
        return false;
    }
    check(!judge->extended && !(judge->structured && reads), "a simple reply");
    check(nbd_get64(header + 4) == answer->request.cookie, "a reply to another request");
    answer->failed = nbd_get32(header) != NBD_SUCCESS;
    if (reads && !answer->failed) {
        answer->next += answer->request.length;
        return expect(judge, answer->request.length, "a read") != NULL;
    }
    return true;
}

static bool take_answer(Judge *judge, Answer *answer)
{
    bool done = false;

    while (!done) {
        const guint8 *magic = expect(judge, 4, "an answer");

        if (!magic) {
            return false;
        }
        if (nbd_get32(magic) == NBD_SIMPLE_REPLY_MAGIC) {
            return take_simple(judge, answer);
        }
        check(judge->structured && nbd_get32(magic) == (judge->extended ? NBD_EXTENDED_CHUNK_MAGIC
                                                                        : NBD_CHUNK_MAGIC),
              "an answer has no magic");
        if (!take_chunk(judge, answer, &done)) {
            return false;
        }
    }
    return true;
}

/* --- answers --- */

static bool judge_answer(Judge *judge, const NbdRequestHeader *request)
{
    Answer answer = { .request = *request, .next = request->offset };
    guint64 all = (G_GUINT64_CONSTANT(1) << judge->n_contexts) - 1;

    if (!take_answer(judge, &answer)) {
        return false;
    }
    check(answer.failed || !must_fail(judge, request), "command %u has not failed",
          request->command);
    check(!answer.failed || !must_succeed(judge, request), "command %u has failed",
          request->command);
    if (!answer.failed && request->command == NBD_CMD_READ) {
        check(answer.next == request->offset + request->length, "a read has gaps");
    }
    if (!answer.failed && request->command == NBD_CMD_BLOCK_STATUS) {
        check(answer.seen && (answer.seen == all || has_payload_flag(judge, request)),
              "a context is missing");
    }
    return true;
}

/* Whether replies to later requests may come before the one to this. */
static bool may_be_overtaken(const NbdRequestHeader *request)
{
    return (request->command == NBD_CMD_TRIM || request->command == NBD_CMD_WRITE_ZEROES) &&
           request->length > MAX_STEP;
}

static Next judge_request(Judge *judge)
{
    const guint8 *header = take(&judge->sent, nbd_request_bytes(judge->extended));
    NbdRequestHeader request;
    guint64 payload = 0;

    if (!header || !nbd_decode_request(header, judge->extended, &request) ||
        request.command == NBD_CMD_DISC) {
        return NEXT_END;
    }
    if (may_be_overtaken(&request)) {
        judge->cut = true;
        return NEXT_END;
    }
    if (request.command == NBD_CMD_WRITE || has_payload_flag(judge, &request)) {
        payload = request.length;
    }
    if (payload > NBD_MAX_PAYLOAD) {
        judge_answer(judge, &request);
        return NEXT_END;
    }
    if (!take(&judge->sent, payload)) {
        if (judge->received.left) {
            judge_answer(judge, &request);
        }
        return NEXT_END;
    }
    return judge_answer(judge, &request) ? NEXT_REQUEST : NEXT_END;
}

void nbd_judge(const guint8 *sent, gsize n_sent, const guint8 *received, gsize n_received, bool cut,
               bool tls)
{
    Judge judge = { .sent = { sent, n_sent },
                    .received = { received, n_received },
                    .cut = cut,
                    .tls = tls,
                    .contexts_of = { sent, 0 } };
    Next next = judge_greeting(&judge);

    while (next != NEXT_END) {
        next = next == NEXT_OPTION ? judge_option(&judge) : judge_request(&judge);
    }
    check(judge.cut || judge.received.left == 0, "the server has sent %zu bytes too many",
          judge.received.left);
}
