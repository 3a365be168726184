"""What an application with an ORM sends: joins, eager loads, IN lists and batches of every length, optional filters.

Values are bound by the client library's way (psycopg) in one half, and written into the texts as literals in the other.
Argument: the URL of the database.
"""

import random
import sys

from sqlalchemy import ForeignKey, create_engine, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, mapped_column, relationship, selectinload

ROUNDS = 300


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "orm_customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    country: Mapped[str | None]
    orders: Mapped[list["Order"]] = relationship(back_populates="customer")


class Order(Base):
    __tablename__ = "orm_orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("orm_customers.id"))
    total: Mapped[float]
    note: Mapped[str | None]
    customer: Mapped[Customer] = relationship(back_populates="orders")


def work(session, dice):
    """One request of an application."""
    ids = [dice.randrange(1, 500) for _ in range(dice.randrange(1, 60))]
    session.scalars(select(Customer).where(Customer.id.in_(ids)).options(selectinload(Customer.orders))).all()
    query = select(Order).options(joinedload(Order.customer)).order_by(Order.total.desc()).limit(dice.randrange(1, 50))
    if dice.random() < 0.5:
        query = query.where(Order.total > dice.random() * 100)
    if dice.random() < 0.5:
        query = query.where(Order.note.is_(None))
    if dice.random() < 0.5:
        query = query.where(Order.customer.has(Customer.country.in_(dice.sample(["de", "fr", "it", "es"], dice.randrange(1, 4)))))
    session.scalars(query).all()
    session.execute(select(Customer.country, func.sum(Order.total)).join(Order).group_by(Customer.country)).all()
    session.add_all(
        Order(customer_id=dice.choice(ids), total=dice.random() * 100, note=dice.choice([None, "n"]))
        for _ in range(dice.randrange(1, 20))
    )
    session.flush()
    customer = session.get(Customer, dice.choice(ids))
    if customer:
        customer.name = f"c{dice.randrange(1000)}"
    session.commit()
    # What a report builder writes, literals and all.
    values = ", ".join(str(value) for value in ids)
    session.execute(text(f"SELECT count(*) FROM orm_orders WHERE customer_id IN ({values}) AND total < {dice.random() * 50}"))
    rows = ", ".join(f"({value}, {dice.random()}, {dice.choice(['NULL', repr('n')])})" for value in ids)
    session.execute(text(f"INSERT INTO orm_orders (customer_id, total, note) VALUES {rows}"))
    session.commit()


def main():
    engine = create_engine(sys.argv[1], pool_size=4)
    dice = random.Random(1)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Customer(id=i, name=f"c{i}", country=dice.choice(["de", "fr", None])) for i in range(1, 501))
        session.commit()
    for _ in range(ROUNDS):
        with Session(engine) as session:
            work(session, dice)


main()
