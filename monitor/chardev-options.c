/* SPDX-License-Identifier: MIT */
/*
 * The order of the checks, and their words, are those of QEMU: names and flags first, then what
 * the kind of device asks for.
 */
#include "chardev-options.h"

#include "qapi/keyval.h"
#include "util/error.h"
#include "util/identifier.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

const char *const chardev_kind_names[] = {
    [CHARDEV_SOCKET] = "socket",
    [CHARDEV_STDIO] = "stdio",
    NULL,
};

typedef enum ParameterType {
    PARAMETER_TEXT,
    PARAMETER_FLAG,
    PARAMETER_NUMBER
} ParameterType;

static const struct {
    const char *name;
    ParameterType type;
} parameters[] = {
    { "abstract", PARAMETER_FLAG }, { "backend", PARAMETER_TEXT },     { "fd", PARAMETER_TEXT },
    { "host", PARAMETER_TEXT },     { "id", PARAMETER_TEXT },          { "ipv4", PARAMETER_FLAG },
    { "ipv6", PARAMETER_FLAG },     { "nodelay", PARAMETER_FLAG },     { "path", PARAMETER_TEXT },
    { "port", PARAMETER_TEXT },     { "reconnect", PARAMETER_NUMBER }, { "server", PARAMETER_FLAG },
    { "signal", PARAMETER_FLAG },   { "tight", PARAMETER_FLAG },       { "to", PARAMETER_NUMBER },
    { "wait", PARAMETER_FLAG },
};

static const char *text_of(const json_t *options, const char *name)
{
    return json_string_value(json_object_get(options, name));
}

static bool is_on(const char *text)
{
    return g_str_equal(text, "on") || g_str_equal(text, "yes") || g_str_equal(text, "true") ||
           g_str_equal(text, "y");
}

static bool is_off(const char *text)
{
    return g_str_equal(text, "off") || g_str_equal(text, "no") || g_str_equal(text, "false") ||
           g_str_equal(text, "n");
}

static bool flag_of(const json_t *options, const char *name, bool otherwise)
{
    const char *text = text_of(options, name);

    return text ? is_on(text) : otherwise;
}

/* Decimal, or with the prefix 0 or 0x. */
static bool parse_number(const char *text, uint64_t *ret)
{
    char *end;

    errno = 0;
    *ret = g_ascii_strtoull(text, &end, 0);
    return errno == 0 && g_ascii_isdigit(*text) && *end == '\0';
}

static uint64_t number_of(const json_t *options, const char *name)
{
    const char *text = text_of(options, name);
    uint64_t number = 0;

    return text && parse_number(text, &number) ? number : 0;
}

/* --- checks that go for any kind --- */

static bool check_parameter(const char *name, const json_t *value, GError **error)
{
    const char *text = json_string_value(value);
    uint64_t number;

    for (size_t i = 0; i < G_N_ELEMENTS(parameters); i++) {
        if (!g_str_equal(parameters[i].name, name) || !text) {
            continue;
        }
        if (parameters[i].type == PARAMETER_FLAG && !is_on(text) && !is_off(text)) {
            merino_error(error, "Parameter '%s' expects 'on' or 'off'", name);
            return false;
        }
        if (parameters[i].type == PARAMETER_NUMBER && !parse_number(text, &number)) {
            merino_error(error, "Parameter '%s' expects a number", name);
            return false;
        }
        return true;
    }
    merino_error(error, "Invalid parameter '%s'", name);
    return false;
}

static bool check_parameters(const json_t *options, GError **error)
{
    const char *id = text_of(options, "id");
    const char *name;
    json_t *value;

    if (id && !identifier_check(id, error)) {
        return false;
    }
    json_object_foreach((json_t *)options, name, value)
    {
        if (!check_parameter(name, value, error)) {
            return false;
        }
    }
    if (!id) {
        merino_error(error, "chardev: no id specified");
        return false;
    }
    return true;
}

static bool find_kind(const json_t *options, ChardevKind *ret_kind, GError **error)
{
    const char *name = text_of(options, "backend");

    if (!name) {
        merino_error(error, "chardev: \"%s\" missing backend", text_of(options, "id"));
        return false;
    }
    for (int kind = 0; chardev_kind_names[kind]; kind++) {
        if (g_str_equal(chardev_kind_names[kind], name)) {
            *ret_kind = kind;
            return true;
        }
    }
    merino_error(error, "'%s' is not a valid char driver name", name);
    return false;
}

/* --- sockets --- */

static bool check_socket(const json_t *options, GError **error)
{
    bool server = flag_of(options, "server", false);
    int places = !!text_of(options, "path") + !!text_of(options, "host") + !!text_of(options, "fd");

    if (places > 1) {
        merino_error(error, "None or one of 'path', 'fd' or 'host' option required.");
    } else if (text_of(options, "host") && !text_of(options, "port")) {
        merino_error(error, "chardev: socket: no port given");
    } else if (!server && text_of(options, "wait")) {
        merino_error(error, "'wait' option is incompatible with socket in client connect mode");
    } else if (server && number_of(options, "reconnect")) {
        merino_error(error, "'reconnect' option is incompatible with socket in server listen mode");
    } else if (number_of(options, "reconnect")) {
        merino_error(error, "'reconnect' is not offered: a client connects once");
    } else if (number_of(options, "to") > G_MAXUINT16) {
        merino_error(error, "'to' is not the number of a port");
    } else {
        return true;
    }
    return false;
}

static void set_flag(const json_t *options, const char *name, bool *ret_has, bool *ret_value)
{
    *ret_has = text_of(options, name) != NULL;
    *ret_value = flag_of(options, name, false);
}

static SocketAddress *inet_address(const json_t *options)
{
    SocketAddress *address = g_new0(SocketAddress, 1);
    InetSocketAddress *inet = &address->u.inet;

    address->type = SOCKET_ADDRESS_TYPE_INET;
    inet->host = g_strdup(text_of(options, "host"));
    inet->port = g_strdup(text_of(options, "port"));
    inet->has_to = text_of(options, "to") != NULL;
    inet->to = (uint16_t)number_of(options, "to");
    set_flag(options, "ipv4", &inet->has_ipv4, &inet->ipv4);
    set_flag(options, "ipv6", &inet->has_ipv6, &inet->ipv6);
    return address;
}

static SocketAddress *unix_address(const json_t *options)
{
    SocketAddress *address = g_new0(SocketAddress, 1);
    UnixSocketAddress *q_unix = &address->u.q_unix;

    address->type = SOCKET_ADDRESS_TYPE_UNIX;
    q_unix->path = g_strdup(text_of(options, "path"));
    set_flag(options, "abstract", &q_unix->has_abstract, &q_unix->abstract);
    set_flag(options, "tight", &q_unix->has_tight, &q_unix->tight);
    return address;
}

static SocketAddress *fd_address(const json_t *options)
{
    SocketAddress *address = g_new0(SocketAddress, 1);
    const char *fd = text_of(options, "fd");

    address->type = SOCKET_ADDRESS_TYPE_FD;
    address->u.fd.str = g_strdup(fd ? fd : "");
    return address;
}

static bool take_socket(const json_t *options, ChardevOptions *into, GError **error)
{
    if (!check_socket(options, error)) {
        return false;
    }
    if (text_of(options, "path")) {
        into->address = unix_address(options);
    } else if (text_of(options, "host")) {
        into->address = inet_address(options);
    } else {
        into->address = fd_address(options);
    }
    into->server = flag_of(options, "server", false);
    into->wait = into->server && flag_of(options, "wait", true);
    into->nodelay = flag_of(options, "nodelay", false);
    return true;
}

/* --- the whole --- */

ChardevOptions *chardev_options_parse(const char *text, GError **error)
{
    g_autoptr(ChardevOptions) options = g_new0(ChardevOptions, 1);
    json_t *parsed = keyval_parse(text, "backend", NULL, error);
    bool ok = parsed && check_parameters(parsed, error) &&
              find_kind(parsed, &options->kind, error) &&
              (options->kind != CHARDEV_SOCKET || take_socket(parsed, options, error));

    if (ok) {
        options->id = g_strdup(text_of(parsed, "id"));
    }
    json_decref(parsed);
    return ok ? g_steal_pointer(&options) : NULL;
}

void chardev_options_free(ChardevOptions *options)
{
    if (!options) {
        return;
    }
    g_free(options->id);
    socket_address_free(options->address);
    g_free(options);
}
