/* SPDX-License-Identifier: MIT */
/*
 * The registry of objects made by users: object-add and object-del. Ids are unique among
 * objects of all types.
 */
#include "monitor/objects.h"
#include "block/iothread.h"
#include "block/throttle.h"
#include "net/authz.h"
#include "net/secret.h"
#include "net/tls-creds.h"
#include "qapi/qapi-commands.h"
#include "util/error.h"
#include "util/identifier.h"

/* A type of objects, as its own registry sees it. */
typedef struct ObjectKind {
    bool (*exists)(const char *id);
    bool (*delete)(const char *id, GError **error);
} ObjectKind;

static const ObjectKind kinds[] = {
    { authz_exists, authz_delete },         { iothread_exists, iothread_delete },
    { secret_exists, secret_delete },       { throttle_group_exists, throttle_group_delete },
    { tls_creds_exists, tls_creds_delete },
};

static const ObjectKind *find_kind(const char *id)
{
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        if (kinds[i].exists(id)) {
            return &kinds[i];
        }
    }
    return NULL;
}

bool object_exists(const char *id)
{
    return find_kind(id);
}

static bool check_free(const char *id, GError **error)
{
    if (object_exists(id)) {
        merino_error(error, "attempt to add duplicate property '%s' to object (type 'container')",
                     id);
        return false;
    }
    return true;
}

static bool add_throttle_group(const char *id, const ThrottleGroupProperties *properties,
                               GError **error)
{
    ThrottleConfig config;

    return throttle_config_parse(properties, &config, error) && check_free(id, error) &&
           throttle_group_add(id, &config, error);
}

static bool add_authz_list(const char *id, const AuthZListProperties *properties, GError **error)
{
    bool ok = check_free(id, error);

    if (ok) {
        authz_add_list(id, properties);
    }
    return ok;
}

static bool add_authz_simple(const char *id, const AuthZSimpleProperties *properties,
                             GError **error)
{
    bool ok = check_free(id, error);

    if (ok) {
        authz_add_simple(id, properties);
    }
    return ok;
}

static bool add_tls_creds_x509(const char *id, const TlsCredsX509Properties *properties,
                               GError **error)
{
    const char *password = properties->passwordid;

    if (!check_free(id, error)) {
        return false;
    }
    if (password && object_exists(password) && !secret_exists(password)) {
        merino_error(error, "Object with id '%s' is not a secret", password);
        return false;
    }
    return tls_creds_add_x509(id, properties, error);
}

bool qmp_object_add(const ObjectOptions *arg, GError **error)
{
    if (!identifier_check(arg->id, error)) {
        return false;
    }
    switch (arg->qom_type) {
    case OBJECT_TYPE_AUTHZ_LIST:
        return add_authz_list(arg->id, &arg->u.authz_list, error);
    case OBJECT_TYPE_AUTHZ_SIMPLE:
        return add_authz_simple(arg->id, &arg->u.authz_simple, error);
    case OBJECT_TYPE_IOTHREAD:
        return check_free(arg->id, error) && iothread_add(arg->id, error);
    case OBJECT_TYPE_SECRET:
        return check_free(arg->id, error) && secret_add(arg->id, &arg->u.secret, error);
    case OBJECT_TYPE_THROTTLE_GROUP:
        return add_throttle_group(arg->id, &arg->u.throttle_group, error);
    case OBJECT_TYPE_TLS_CREDS_PSK:
        return check_free(arg->id, error) &&
               tls_creds_add_psk(arg->id, &arg->u.tls_creds_psk, error);
    case OBJECT_TYPE_TLS_CREDS_X509:
        return add_tls_creds_x509(arg->id, &arg->u.tls_creds_x509, error);
    default:
        g_assert_not_reached();
    }
}

bool qmp_object_del(const char *id, GError **error)
{
    const ObjectKind *kind = find_kind(id);

    if (!kind) {
        merino_error(error, "object '%s' not found", id);
        return false;
    }
    return kind->delete (id, error);
}

IOThreadInfoList *qmp_query_iothreads(GError **error)
{
    return iothread_query();
}
