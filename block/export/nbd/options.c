/* SPDX-License-Identifier: MIT */
/*
 * The answers to negotiation options, one function each, in the words of QEMU where it has any.
 */
#include "negotiate.h"
#include "protocol.h"
#include "server.h"

#include <string.h>

#define SHOWN_NAME 80 /* bytes of a name that error messages repeat */

/* --- reading an option's data --- */

static bool take(NbdOptionCall *call, size_t bytes, const uint8_t **ret_data)
{
    if (call->left < bytes) {
        nbd_option_error(call, NBD_REP_ERR_INVALID, "Inconsistent lengths in option %s",
                         nbd_option_name(call->option));
        return false;
    }
    *ret_data = call->data;
    call->data += bytes;
    call->left -= bytes;
    return true;
}

static bool take_u16(NbdOptionCall *call, uint16_t *ret_value)
{
    const uint8_t *data;

    if (!take(call, sizeof(*ret_value), &data)) {
        return false;
    }
    *ret_value = nbd_get16(data);
    return true;
}

static bool take_u32(NbdOptionCall *call, uint32_t *ret_value)
{
    const uint8_t *data;

    if (!take(call, sizeof(*ret_value), &data)) {
        return false;
    }
    *ret_value = nbd_get32(data);
    return true;
}

/* The name as a string; NULL when it holds a zero byte, which no export's name does. */
static char *name_from_bytes(const uint8_t *data, size_t length)
{
    return memchr(data, 0, length) ? NULL : g_strndup((const char *)data, length);
}

/* A length and that many bytes: the name of an export. */
static bool take_name(NbdOptionCall *call, char **ret_name)
{
    const uint8_t *data;
    uint32_t length;

    if (!take_u32(call, &length)) {
        return false;
    }
    if (length > NBD_MAX_STRING) {
        nbd_option_error(call, NBD_REP_ERR_INVALID, "Invalid name length: %u", length);
        return false;
    }
    if (!take(call, length, &data)) {
        return false;
    }
    *ret_name = name_from_bytes(data, length);
    if (!*ret_name) {
        nbd_option_error(call, NBD_REP_ERR_INVALID, "Unexpected embedded NUL in option %s",
                         nbd_option_name(call->option));
    }
    return *ret_name != NULL;
}

static bool expect_end(NbdOptionCall *call)
{
    if (call->left) {
        nbd_option_error(call, NBD_REP_ERR_INVALID, "option '%s' has unexpected length",
                         nbd_option_name(call->option));
    }
    return !call->left;
}

static NbdExport *find_export(NbdOptionCall *call, const char *name)
{
    NbdExport *exp = nbd_export_find(name);

    if (!exp) {
        nbd_option_error(call, NBD_REP_ERR_UNKNOWN, "export '%.*s%s' not present", SHOWN_NAME, name,
                         strlen(name) > SHOWN_NAME ? "..." : "");
    }
    return exp;
}

/* What the export can do for this client. */
static uint16_t flags_for(const NbdConnection *conn, const NbdExport *exp)
{
    return (uint16_t)(exp->flags | (conn->structured ? NBD_FLAG_SEND_DF : 0) |
                      (conn->extended ? NBD_FLAG_BLOCK_STATUS_PAYLOAD : 0));
}

/* --- the options --- */

/* The oldest way to choose: there is no way to say no but to hang up. */
static NbdNext answer_export_name(NbdOptionCall *call)
{
    static const uint8_t zeroes[NBD_EXPORT_NAME_ZEROES];
    g_autofree char *name =
        call->left <= NBD_MAX_STRING ? name_from_bytes(call->data, call->left) : NULL;
    NbdExport *exp = name ? nbd_export_find(name) : NULL;
    uint8_t answer[NBD_EXPORT_NAME_BYTES];

    if (!exp) {
        return NBD_NEXT_CLOSE;
    }
    nbd_put64(answer, (uint64_t)exp->size);
    nbd_put16(answer + 8, flags_for(call->conn, exp));
    g_byte_array_append(call->out, answer, sizeof(answer));
    if (!call->conn->no_zeroes) {
        g_byte_array_append(call->out, zeroes, sizeof(zeroes));
    }
    nbd_connection_choose(call->conn, exp);
    return NBD_NEXT_TRANSMISSION;
}

static NbdNext answer_abort(NbdOptionCall *call)
{
    nbd_option_reply(call, NBD_REP_ACK, NULL, 0);
    return NBD_NEXT_CLOSE;
}

static NbdNext answer_list(NbdOptionCall *call)
{
    const NbdExport *exp;

    if (!expect_end(call)) {
        return NBD_NEXT_OPTION;
    }
    for (guint i = 0; (exp = nbd_export_nth(i)); i++) {
        const char *description = exp->description ? exp->description : "";
        g_autoptr(GByteArray) item = g_byte_array_new();
        uint8_t length[4];

        nbd_put32(length, (uint32_t)strlen(exp->name));
        g_byte_array_append(item, length, sizeof(length));
        g_byte_array_append(item, (const uint8_t *)exp->name, (guint)strlen(exp->name));
        g_byte_array_append(item, (const uint8_t *)description, (guint)strlen(description));
        nbd_option_reply(call, NBD_REP_SERVER, item->data, item->len);
    }
    nbd_option_reply(call, NBD_REP_ACK, NULL, 0);
    return NBD_NEXT_OPTION;
}

static NbdNext answer_starttls(NbdOptionCall *call)
{
    bool wanted = nbd_tls_is_missing(call->conn);

    if (!expect_end(call)) {
        /* What else the client means to do in the clear is not known. */
        return wanted ? NBD_NEXT_CLOSE : NBD_NEXT_OPTION;
    }
    if (call->conn->channel.tls) {
        nbd_option_error(call, NBD_REP_ERR_INVALID, "TLS already enabled");
        return NBD_NEXT_OPTION;
    }
    if (!wanted) {
        nbd_option_error(call, NBD_REP_ERR_POLICY, "TLS not configured");
        return NBD_NEXT_OPTION;
    }
    nbd_option_reply(call, NBD_REP_ACK, NULL, 0);
    return NBD_NEXT_TLS;
}

/* In the clear there is nothing but STARTTLS and ABORT; and no way to say so to EXPORT_NAME. */
static NbdNext refuse_without_tls(NbdOptionCall *call)
{
    if (call->option == NBD_OPT_EXPORT_NAME) {
        return NBD_NEXT_CLOSE;
    }
    nbd_option_error(call, NBD_REP_ERR_TLS_REQD, "Option 0x%x not permitted before TLS",
                     call->option);
    return NBD_NEXT_OPTION;
}

static NbdNext answer_structured_reply(NbdOptionCall *call)
{
    if (!expect_end(call)) {
        return NBD_NEXT_OPTION;
    }
    if (call->conn->structured) {
        nbd_option_error(call, NBD_REP_ERR_INVALID, "%s already negotiated",
                         call->conn->extended ? "extended headers" : "structured reply");
        return NBD_NEXT_OPTION;
    }
    call->conn->structured = true;
    nbd_option_reply(call, NBD_REP_ACK, NULL, 0);
    return NBD_NEXT_OPTION;
}

static NbdNext answer_extended_headers(NbdOptionCall *call)
{
    if (!expect_end(call)) {
        return NBD_NEXT_OPTION;
    }
    if (call->conn->extended) {
        nbd_option_error(call, NBD_REP_ERR_INVALID, "extended headers already negotiated");
        return NBD_NEXT_OPTION;
    }
    call->conn->extended = true;
    call->conn->structured = true;
    nbd_option_reply(call, NBD_REP_ACK, NULL, 0);
    return NBD_NEXT_OPTION;
}

/* --- INFO and GO --- */

static void reply_info(NbdOptionCall *call, uint16_t type, const void *data, size_t length)
{
    g_autoptr(GByteArray) info = g_byte_array_new();
    uint8_t number[2];

    nbd_put16(number, type);
    g_byte_array_append(info, number, sizeof(number));
    g_byte_array_append(info, data, (guint)length);
    nbd_option_reply(call, NBD_REP_INFO, info->data, info->len);
}

/* What the client asked to be told. */
typedef struct WantedInfos {
    bool name;
    bool block_size;
} WantedInfos;

/* All there is to know, whether asked for or not; but the name is sent on request only, and a
 * client that goes on without a look at block sizes may use any. */
static void reply_infos(NbdOptionCall *call, const NbdExport *exp, const WantedInfos *wanted)
{
    bool any_block = call->option == NBD_OPT_GO && !wanted->block_size;
    uint32_t min_block = any_block ? 1 : nbd_export_min_block(exp);
    uint8_t sizes[12], description[10];

    if (wanted->name) {
        reply_info(call, NBD_INFO_NAME, exp->name, strlen(exp->name));
    }
    if (exp->description) {
        reply_info(call, NBD_INFO_DESCRIPTION, exp->description, strlen(exp->description));
    }
    nbd_put32(sizes, min_block);
    nbd_put32(sizes + 4, MAX(NBD_PREFERRED_BLOCK, min_block));
    nbd_put32(sizes + 8, NBD_MAX_PAYLOAD);
    reply_info(call, NBD_INFO_BLOCK_SIZE, sizes, sizeof(sizes));
    nbd_put64(description, (uint64_t)exp->size);
    nbd_put16(description + 8, flags_for(call->conn, exp));
    reply_info(call, NBD_INFO_EXPORT, description, sizeof(description));
}

static NbdNext answer_info_or_go(NbdOptionCall *call)
{
    g_autofree char *name = NULL;
    WantedInfos wanted = { 0 };
    NbdExport *exp;
    uint16_t n;

    if (!take_name(call, &name) || !take_u16(call, &n)) {
        return NBD_NEXT_OPTION;
    }
    for (; n > 0; n--) {
        uint16_t type;

        if (!take_u16(call, &type)) {
            return NBD_NEXT_OPTION;
        }
        wanted.name |= type == NBD_INFO_NAME;
        wanted.block_size |= type == NBD_INFO_BLOCK_SIZE;
    }
    if (!expect_end(call)) {
        return NBD_NEXT_OPTION;
    }
    exp = find_export(call, name);
    if (!exp) {
        return NBD_NEXT_OPTION;
    }
    reply_infos(call, exp, &wanted);
    nbd_option_reply(call, NBD_REP_ACK, NULL, 0);
    if (call->option == NBD_OPT_INFO) {
        return NBD_NEXT_OPTION;
    }
    nbd_connection_choose(call->conn, exp);
    return NBD_NEXT_TRANSMISSION;
}

/* --- metadata contexts --- */

static bool take_queries(NbdOptionCall *call, const NbdExport *exp, NbdContexts *contexts)
{
    bool listing = call->option == NBD_OPT_LIST_META_CONTEXT;
    uint32_t n;

    if (!take_u32(call, &n)) {
        return false;
    }
    if (n > NBD_MAX_QUERIES) {
        nbd_option_error(call, NBD_REP_ERR_TOO_BIG, "option '%s' has too many queries",
                         nbd_option_name(call->option));
        return false;
    }
    if (n == 0 && listing) {
        nbd_contexts_select_all(contexts, exp);
    }
    for (; n > 0; n--) {
        const uint8_t *query;
        uint32_t length;

        if (!take_u32(call, &length) || !take(call, length, &query)) {
            return false;
        }
        nbd_contexts_select(contexts, exp, (const char *)query, length, listing);
    }
    return expect_end(call);
}

/* Ids mean something only in a selection that stands. */
static void reply_contexts(NbdOptionCall *call, const NbdExport *exp, const NbdContexts *contexts)
{
    for (uint32_t id = 0; id < nbd_context_limit(exp); id++) {
        if (nbd_contexts_has(contexts, id)) {
            g_autofree char *name = nbd_context_name(exp, id);
            g_autoptr(GByteArray) item = g_byte_array_new();
            uint8_t number[4];

            nbd_put32(number, call->option == NBD_OPT_SET_META_CONTEXT ? id : 0);
            g_byte_array_append(item, number, sizeof(number));
            g_byte_array_append(item, (const uint8_t *)name, (guint)strlen(name));
            nbd_option_reply(call, NBD_REP_META_CONTEXT, item->data, item->len);
        }
    }
    nbd_option_reply(call, NBD_REP_ACK, NULL, 0);
}

/* SET replaces the selection that stood; also when it fails, so that none is left by mistake. */
static NbdNext answer_meta_context(NbdOptionCall *call)
{
    NbdContexts contexts = { 0 };
    g_autofree char *name = NULL;
    bool set = call->option == NBD_OPT_SET_META_CONTEXT;
    NbdExport *exp;

    if (set && !call->conn->structured) {
        nbd_option_error(call, NBD_REP_ERR_INVALID,
                         "request option '%s' when structured reply is not negotiated",
                         nbd_option_name(call->option));
        return NBD_NEXT_OPTION;
    }
    if (set) {
        nbd_contexts_done(&call->conn->contexts);
    }
    if (!take_name(call, &name)) {
        return NBD_NEXT_OPTION;
    }
    exp = find_export(call, name);
    if (!exp) {
        return NBD_NEXT_OPTION;
    }
    nbd_contexts_init(&contexts, exp);
    if (!take_queries(call, exp, &contexts)) {
        nbd_contexts_done(&contexts);
        return NBD_NEXT_OPTION;
    }
    reply_contexts(call, exp, &contexts);
    if (set) {
        call->conn->contexts = contexts;
    } else {
        nbd_contexts_done(&contexts);
    }
    return NBD_NEXT_OPTION;
}

static const struct {
    NbdOption option;
    NbdNext (*answer)(NbdOptionCall *call);
} options[] = {
    { NBD_OPT_EXPORT_NAME, answer_export_name },
    { NBD_OPT_ABORT, answer_abort },
    { NBD_OPT_LIST, answer_list },
    { NBD_OPT_STARTTLS, answer_starttls },
    { NBD_OPT_INFO, answer_info_or_go },
    { NBD_OPT_GO, answer_info_or_go },
    { NBD_OPT_STRUCTURED_REPLY, answer_structured_reply },
    { NBD_OPT_LIST_META_CONTEXT, answer_meta_context },
    { NBD_OPT_SET_META_CONTEXT, answer_meta_context },
    { NBD_OPT_EXTENDED_HEADERS, answer_extended_headers },
};

NbdNext nbd_option_answer(NbdOptionCall *call)
{
    if (nbd_tls_is_missing(call->conn) && call->option != NBD_OPT_STARTTLS &&
        call->option != NBD_OPT_ABORT) {
        return refuse_without_tls(call);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(options); i++) {
        if (options[i].option == call->option) {
            return options[i].answer(call);
        }
    }
    nbd_option_error(call, NBD_REP_ERR_UNSUP, "Unsupported option %u (%s)", call->option,
                     nbd_option_name(call->option));
    return NBD_NEXT_OPTION;
}
