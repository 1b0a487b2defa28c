from coupon_clock.cli import main

main()
