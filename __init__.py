"""Coupon Clock: coupon templates that end exactly on time (README.md).

Every public name can be imported from here. It is loaded when it is first asked for, so that importing
`coupon_clock.domain` loads no database client.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coupon_clock.app import *  # noqa: F403
    from coupon_clock.async_app import *  # noqa: F403
else:

    def __getattr__(name):
        if name == "__all__" or name[:1].isupper():  # a public name, not a module
            from coupon_clock import app, async_app

            if name == "__all__":
                return sorted([*app.__all__, *async_app.__all__])
            for module in (app, async_app):
                if name in module.__all__:
                    return getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
