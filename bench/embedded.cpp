// What rows_embedding.py times: the calls of ksmwalk.hpp in loops, as a module that Python loads.
#include "ksmwalk.hpp"

// visits made by `batches` batches of n.
static PyObject *scan(PyObject *, PyObject *args)
{
    PyObject *object;
    long long n, batches, done = 0;
    if (!PyArg_ParseTuple(args, "OLL", &object, &n, &batches))
        return nullptr;
    ksmwalk::Host host = ksmwalk::Host::of(object);
    {
        ksmwalk::Unlocked here(host);
        for (long long i = 0; i < batches; ++i)
            done += host.scan(n);
    }
    return PyLong_FromLongLong(done);
}

// `n` translations, or stores, of the pages from addr on, one after the other.
static PyObject *calls(PyObject *, PyObject *args)
{
    PyObject *object;
    int mm, stores;
    unsigned long long addr, n, sum = 0;
    if (!PyArg_ParseTuple(args, "OiKKp", &object, &mm, &addr, &n, &stores))
        return nullptr;
    ksmwalk::Host host = ksmwalk::Host::of(object);
    kw_world *w = host.world();
    for (unsigned long long i = 0; i < n; ++i)
        sum += static_cast<unsigned long long>(stores ? kw->write(w, mm, addr + i * 4096, i) : kw->translate(w, mm, addr + i * 4096, nullptr, nullptr));
    return PyLong_FromUnsignedLongLong(sum);
}

static PyMethodDef methods[] = {
    {"scan", scan, METH_VARARGS, nullptr}, {"calls", calls, METH_VARARGS, nullptr}, {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "embedded", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit_embedded()
{
    return kw_import() == 0 ? PyModule_Create(&module) : nullptr;
}
